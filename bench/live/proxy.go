//go:build linux

package main

import "github.com/pqproxy/caddy-pqproxy/bench/internal/lab"

// Cores: the load has one for itself. A proxy has the other, or with lab.AnyCore all that the machine has.
const (
	proxyCore = 0
	loadCore  = 1
)

// object is a JSON object of a configuration.
type object = lab.Object

// launch starts a proxy on a core and waits until it answers on its admin endpoint and accepts connections. apps makes
// its `apps` for a listen address. End it with stop.
func (b *bench) launch(name string, core int, apps func(addr string) object) (*lab.Proxy, error) {
	return b.proxies.Launch(lab.Launch{Name: name, Core: core, Config: func(addr string) object { return object{"apps": apps(addr)} }})
}

// managed makes the apps of a pqproxy that polls a feed and serves static domains. The interval is the least there is:
// it is waited for after every answer that was not held, such as a full set behind a 410.
func managed(feedURL string, static []object) func(addr string) object {
	return func(addr string) object {
		return object{
			"layer4": object{"servers": object{"front": object{
				"listen": []string{"pqproxy/" + addr},
				"routes": []object{{"handle": []object{{"handler": "pqproxy"}}}},
			}}},
			"pqproxy": object{
				"domains":         static,
				"management":      object{"url": feedURL, "interval": "1s"},
				"upstream_policy": object{"allow": []string{"127.0.0.0/8", "10.0.0.0/8"}},
			},
		}
	}
}
