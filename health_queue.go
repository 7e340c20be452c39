package pqproxy

import "container/list"

// turns are targets that are due, those of each tenant in a queue. Tenants take turns.
type turns struct {
	order   list.List // of *tenantTurn
	tenants map[string]*tenantTurn
}

// tenantTurn has at least one target.
type tenantTurn struct {
	tenant  string
	targets []*target
}

func (q *turns) push(t *target) {
	turn := q.tenants[t.tenant]
	if turn == nil {
		if q.tenants == nil {
			q.tenants = make(map[string]*tenantTurn)
		}
		turn = &tenantTurn{tenant: t.tenant}
		q.tenants[t.tenant] = turn
		q.order.PushBack(turn)
	}
	turn.targets = append(turn.targets, t)
}

// next returns the next target that is not gone, or nil.
func (q *turns) next() *target {
	for e := q.order.Front(); e != nil; e = q.order.Front() {
		turn := e.Value.(*tenantTurn)
		t := turn.targets[0]
		if turn.targets = turn.targets[1:]; len(turn.targets) > 0 {
			q.order.MoveToBack(e)
		} else {
			q.order.Remove(e)
			delete(q.tenants, turn.tenant)
		}
		if !t.gone {
			return t
		}
	}
	return nil
}
