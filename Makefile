# Commands of this repository. `make test` is what CI runs.

FUZZTIME ?= 20s
# Packages build and run side by side; one of them builds Caddy with xcaddy, and
# on a cold cache that waits for everything else to be compiled.
TIMEOUT ?= 30m

.PHONY: build test check race fuzz bench generate peers lint

# The proxy: ./pqproxy
build:
	go build -trimpath -o pqproxy ./cmd/pqproxy

# Everything: peers, static checks, all tests with the race detector.
test: lint race

# The same without the race detector: quicker, for every day.
check: lint
	go test -timeout $(TIMEOUT) ./...

# CI has tests fail, not skip, where a peer is missing: they have just been installed.
race: export CI = true
race: peers
	go test -race -timeout $(TIMEOUT) ./...

# Every fuzz target in turn, FUZZTIME each.
fuzz:
	scripts/fuzz.sh $(FUZZTIME)

# The measurements, against other proxies; needs the peers.
bench: peers
	go run ./bench

# Golden files, from what the code does now. Review the difference as code.
generate:
	go test $$(grep -rl --include='*_test.go' --exclude-dir='.?*' 'flag.Bool("update"' . | xargs -n 1 dirname | sort -u) -update

# Test peers and tools, into .peers/ and, as root, from Debian.
peers:
	scripts/peers.sh

lint: peers
	@unformatted=$$(find . -name '*.go' -not -path '*/.*' -exec gofmt -l {} +); test -z "$$unformatted" || { echo "run gofmt -w on:" $$unformatted; exit 1; }
	go vet ./...
	.peers/bin/staticcheck ./...
	.peers/bin/gosec -reviewed scripts/gosec.txt .
