// Command pqproxy is Caddy with the standard modules, caddy-l4 and pqproxy.
// It is what `xcaddy build --with github.com/pqproxy/caddy-pqproxy` makes.
//
//	pqproxy run --config Caddyfile
//	pqproxy pqproxy probe example.com
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-l4"
	_ "github.com/pqproxy/caddy-pqproxy"
)

func main() {
	caddycmd.Main()
}
