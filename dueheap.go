package pqproxy

import "time"

// dueHeap is a heap, for container/heap, of what becomes due, the first in front. What is in it knows its place, so that it
// can be taken out.
type dueHeap[T dueItem] []T

// dueItem is what a dueHeap has.
type dueItem interface {
	// dueAt returns when it is due. That does not change while it is in a heap.
	dueAt() time.Time
	// moved takes note of its place in the heap; -1: it has left.
	moved(place int)
}

func (h dueHeap[T]) Len() int           { return len(h) }
func (h dueHeap[T]) Less(i, j int) bool { return h[i].dueAt().Before(h[j].dueAt()) }

func (h dueHeap[T]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].moved(i)
	h[j].moved(j)
}

// Push is for container/heap.
func (h *dueHeap[T]) Push(x any) {
	item := x.(T)
	item.moved(len(*h))
	*h = append(*h, item)
}

// Pop is for container/heap.
func (h *dueHeap[T]) Pop() any {
	last := len(*h) - 1
	item := (*h)[last]
	clear((*h)[last:])
	*h = (*h)[:last]
	item.moved(-1)
	return item
}
