// Command pqproxy is Caddy with the standard modules, caddy-l4 and pqproxy, management plane included.
// It is what `xcaddy build --with github.com/pqproxy/caddy-pqproxy`, with its package management/module, makes.
//
//	pqproxy run --config Caddyfile
//	pqproxy pqproxy probe example.com
//	pqproxy pqproxy-management backup pqproxy.gz
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-l4"
	_ "github.com/pqproxy/caddy-pqproxy"
	_ "github.com/pqproxy/caddy-pqproxy/management/module"
)

func main() {
	caddycmd.Main()
}
