// Package caddytest tests the proxy as its users run it: the built binary, configured by a Caddyfile,
// between programs that we did not write. As upstreams nginx and HAProxy, which read the PROXY protocol;
// as clients Node.js (OpenSSL 3.5), Deno (rustls), Bun (BoringSSL), Chromium, curl and an OpenSSL that
// knows no hybrid group.
//
// The programs come from scripts/peers.sh. A test fails, and is never skipped, where one is missing:
//
//	scripts/peers.sh
//	go test ./caddytest
//
// Chromium also goes through the dashboard of the management plane (TestDashboard), and axe-core looks at each of its pages.
//
// What it looks at is what an operator would: the answer that the client gets, the address that the
// upstream was told, and the proxy's record of the connection.
package caddytest
