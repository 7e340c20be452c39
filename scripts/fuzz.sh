#!/usr/bin/env bash
# Runs every fuzz target of the repository, one after the other, for the time
# given (default 20s) each. A failing input is written to the package's
# testdata/fuzz by go test, to be committed with the fix.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-20s}

targets=$(grep -rnoE --include='*_test.go' --exclude-dir='.?*' '^func Fuzz[A-Za-z0-9_]+' . | sed -E 's|^(.*)/[^/]*:[0-9]+:func (Fuzz.*)$|\1 \2|' | sort -u)
[ -n "$targets" ] || {
	echo "fuzz: no targets found" >&2
	exit 1
}
while read -r package target; do
	echo "== $package $target"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package" </dev/null
done <<<"$targets"
