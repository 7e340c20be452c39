package edgereport

import "math"

// HandshakeBuckets are the upper bounds of the histogram of handshakes, in seconds and inclusive. Behind them there is
// one more bucket, for what took longer. Two neighbours are at most a factor of two apart, so that p50, p95 and p99 are known
// to within that from half a millisecond, which a resumed handshake on one machine takes, to ten seconds, which is
// where handshake_timeout ends it. They are part of the wire format: changing them changes the length of what Parse
// takes, and what was counted before no longer adds up.
var HandshakeBuckets = []float64{
	0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075,
	0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
	1, 1.5, 2, 3, 5, 7.5, 10,
}

// BucketCount is how many buckets a histogram has: one more than HandshakeBuckets has bounds.
const BucketCount = 28

// BucketOf returns the bucket that a handshake of so many seconds counts in.
func BucketOf(seconds float64) int {
	low, high := 0, len(HandshakeBuckets)
	for low < high {
		if mid := (low + high) / 2; seconds <= HandshakeBuckets[mid] {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low
}

// Quantile returns the time in seconds within which the share q (0 to 1) of all handshakes ended, of a histogram whose
// buckets may be the sums of several. It assumes that times are spread evenly within a bucket. What took longer than the last
// bound counts as that bound. It returns NaN where nothing was counted or the histogram has another length.
func Quantile(buckets []int64, q float64) float64 {
	if len(buckets) != BucketCount {
		return math.NaN()
	}
	var total float64
	for _, n := range buckets {
		total += float64(n)
	}
	if total <= 0 || math.IsNaN(q) {
		return math.NaN()
	}
	rank := min(max(q, 0), 1) * total
	var below float64
	for i, bound := range HandshakeBuckets {
		n := float64(buckets[i])
		if n > 0 && below+n >= rank {
			lower := 0.0
			if i > 0 {
				lower = HandshakeBuckets[i-1]
			}
			return lower + (bound-lower)*max(rank-below, 0)/n
		}
		below += n
	}
	return HandshakeBuckets[len(HandshakeBuckets)-1]
}
