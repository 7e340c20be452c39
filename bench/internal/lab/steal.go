//go:build linux

package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Ticks is the unit of times in /proc/stat and /proc/PID/stat: USER_HZ, which is 100 on all that Linux runs on (proc_pid_stat(5)).
const Ticks = 10 * time.Millisecond

// Steal is a moment, and how long until then processors had something to do while the host had them do something else for other
// machines; all processors together.
type Steal struct {
	at     time.Time
	stolen time.Duration
}

// StealNow returns the present moment.
func StealNow() (Steal, error) {
	content, err := os.ReadFile("/proc/stat")
	if err != nil {
		return Steal{}, err
	}
	stolen, err := parseStolen(string(content))
	return Steal{time.Now(), stolen}, err
}

// Cores returns how many processors were taken away since, on average.
func (s Steal) Cores() (float64, error) {
	now, err := StealNow()
	return (now.stolen - s.stolen).Seconds() / now.at.Sub(s.at).Seconds(), err
}

// parseStolen returns the 8th figure of the first line of /proc/stat (proc_stat(5)).
func parseStolen(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("malformed stat %q", line)
	}
	n, err := strconv.Atoi(fields[8])
	if err != nil {
		return 0, fmt.Errorf("malformed stat %q: %w", line, err)
	}
	return time.Duration(n) * Ticks, nil
}

// CalmCores is how much of the processors other machines may have while something is measured in which one late answer in a hundred
// is what counts: where they take more, those are theirs.
const CalmCores = 0.02

// Calmest calls try until the machine was calm meanwhile, at most so many times, and returns what the calmest try did. Nothing else
// about it is looked at. try returns how many processors were taken away while it measured.
func Calmest[T any](most int, try func() (value T, stolen float64, err error)) (calmest T, stolen float64, err error) {
	for n := range most {
		value, taken, err := try()
		if err != nil {
			return value, taken, err
		}
		if n == 0 || taken < stolen {
			calmest, stolen = value, taken
		}
		if stolen <= CalmCores {
			break
		}
	}
	return calmest, stolen, nil
}
