//go:build linux

package main

import (
	"fmt"
	"net/http"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// routesRun is the live scenario with caddy-l4.
type routesRun struct {
	*stage
	plan *plan
	next int // number of the next route to add
	gone int // routes removed
}

// measureRoutes does with caddy-l4's own handlers what measureLive does with pqproxy, as far as it goes: the same
// connections to the same names, each a route with an SNI matcher, `tls` and `proxy`; some more routes beside; and an
// operator who adds, changes and removes routes by Caddy's /config API, and touches those with connections. Each
// request reloads the whole config, so there are fewer changes, at most RouteSecs of them, and no full sets. caddy-l4
// listens on a plain address, as its documentation has it.
//
// The number cannot show: more routes than these (a reload builds every one of them, and each connection tries them in
// turn), or several changes in one request.
func (b *bench) measureRoutes() error {
	p := newPlan(b.pki, upstreams{}, b.opts.Size.Names)
	s, err := b.newStage(p.usedNames())
	if err != nil {
		return err
	}
	defer s.close()
	p.dials = s.dials
	r := &routesRun{stage: s, plan: p}
	err = r.run()
	if err != nil && s.proxy != nil {
		err = fmt.Errorf("live, caddy-l4: %w\nits log ends:\n%s", err, s.proxy.LogTail())
	}
	return err
}

func (r *routesRun) run() (err error) {
	size := r.opts.Size
	var routes []object
	for i := range r.plan.inUse {
		for _, source := range []string{sourceStatic, sourceAdmin, sourceRemote} {
			s := r.plan.sources[source]
			routes = append(routes, route(s.usedName(i), r.usedHandler(s, i)))
		}
	}
	for range size.OtherRoutes {
		routes = append(routes, r.newRoute())
	}
	apps := func(addr string) object {
		return object{
			"tls":    object{"certificates": object{"load_files": []object{{"certificate": r.pki.chainFile, "key": r.pki.keyFile}}}},
			"layer4": object{"servers": object{"front": object{"listen": []string{addr}, "routes": routes}}},
		}
	}
	if r.proxy, err = r.launch("caddy-l4", proxyCore, apps); err != nil {
		return err
	}
	if err := r.begin(); err != nil {
		return err
	}
	before, err := r.proxy.CPUNow()
	if err != nil {
		return err
	}
	var (
		pace  = time.Duration(size.RouteSecs) * time.Second / time.Duration(size.RouteChanges)
		limit = r.changing.start.Add(time.Duration(size.RouteSecs) * time.Second)
		made  = 0
	)
	for ; made < size.RouteChanges && time.Now().Before(limit); made++ {
		time.Sleep(time.Until(r.changing.start.Add(time.Duration(made) * pace)))
		if err := r.change(made); err != nil {
			return fmt.Errorf("change %d: %w", made+1, err)
		}
	}
	used, err := r.cpuSince(before)
	if err != nil {
		return err
	}
	perChange := (used - r.quietCPU*time.Since(r.changing.start).Seconds()) * 1000 / float64(made)
	values := r.finish()
	values["changes"], values["reloads"] = float64(made), float64(made)
	values["cpu_ms_per_change"], values["ten_thousand_cpu_s"] = perChange, perChange*10
	return r.Record(liveCaddyL4, 1, values, map[string][]float64{"request": r.requests}, r.faults)
}

// change makes the nth change, in turn: a touch of a route in use, a new route, a changed one, one less.
func (r *routesRun) change(n int) error {
	switch n % 4 {
	case 0:
		s := r.plan.sources[[]string{sourceStatic, sourceAdmin, sourceRemote}[n/4%3]]
		i := n / 4 % r.plan.inUse
		s.touched[i]++
		return r.request(http.MethodPatch, "/id/"+s.usedName(i)+"/handle/1", r.usedHandler(s, i))
	case 1:
		return r.request(http.MethodPost, "/config/apps/layer4/servers/front/routes", r.newRoute())
	case 2:
		i := r.gone + r.plan.random.IntN(r.next-r.gone)
		return r.request(http.MethodPatch, "/id/"+lab.TypicalName(i)+"/handle/1", otherHandler(i, n))
	default:
		r.gone++
		return r.request(http.MethodDelete, "/id/"+lab.TypicalName(r.gone-1), nil)
	}
}

// newRoute is a route of a typical domain.
func (r *routesRun) newRoute() object {
	r.next++
	return route(lab.TypicalName(r.next-1), otherHandler(r.next-1, 0))
}

// route leads a name to a proxy handler, behind the tls handler. Its name is its @id too.
func route(name string, proxy object) object {
	return object{
		"@id":    name,
		"match":  []object{{"tls": object{"sni": []string{name}}}},
		"handle": []object{{"handler": "tls"}, proxy},
	}
}

// usedHandler is the proxy handler of a name in use: the same upstreams and choice as pqproxy is told.
func (r *routesRun) usedHandler(s *sourcePlan, i int) object {
	touched := s.touched[i]
	dials := r.plan.dials.plain
	if i%2 == 1 {
		dials = r.plan.dials.tls
	}
	var to []object
	for _, dial := range dials[:1+touched%2] {
		u := object{"dial": []string{dial}}
		if i%2 == 1 {
			u["tls"] = object{"server_name": upstreamName, "ca": object{"provider": "file", "pem_files": []string{r.pki.caFile}}}
		}
		to = append(to, u)
	}
	policy := []string{"first", "random", "least_conn", "ip_hash"}[touched%4]
	return object{
		"handler": "proxy", "upstreams": to,
		"load_balancing": object{"selection": object{"policy": policy}},
	}
}

// otherHandler is the proxy handler of a typical domain, as appendTypical has it.
func otherHandler(i, version int) object {
	return object{"handler": "proxy", "proxy_protocol": "v1", "upstreams": []object{{
		"dial": []string{fmt.Sprintf("10.%d.%d.%d:%d", i>>16&0xff, i>>8&0xff, i&0xff, 8443+version%1000)},
		"tls":  object{"server_name": fmt.Sprintf("app-%07d.internal", i)},
	}}}
}
