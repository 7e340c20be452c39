// Package pqproxy is a post-quantum front door as a Caddy plugin: it terminates TLS 1.3 with the hybrid
// key exchange X25519MLKEM768, picks the tenant's domain by SNI, re-encrypts to the domain's upstream and
// tells it the client's address with the PROXY protocol. It parses no HTTP and adds nothing to the stream
// but the PROXY header.
//
// One connection:
//
//  1. The listener network `pqproxy/` accepts it and counts it (listener.go).
//  2. caddy-l4 hands it to layer4.handlers.pqproxy (sniroute.go), which serves it (conn.go).
//  3. crypto/tls reads the ClientHello; in its callback the name is looked up in the table (pqtls.go).
//  4. The upstream is dialled beside the handshake, if the hello can succeed (upstream.go).
//  5. ALPN is what the upstream would select, learned once and remembered (alpn.go).
//  6. The group is checked against the domain's policy, in the hello and again when negotiated.
//  7. The PROXY header goes to the upstream in clear, with the upstream's ClientHello behind it.
//  8. Both directions are relayed until both ended; truncation stays visible (relay.go).
//  9. One log record says what was negotiated, where the time went and how it ended (log.go).
//
// Words: a domain is a host name of a tenant with its settings; a route is a domain compiled for the data
// path; the table is all routes, immutable; a group is a TLS key-exchange group; a source is who gave a
// domain.
//
// What it does not do: HTTP, TLS 1.2, early data (0-RTT), client certificates, UDP and QUIC.
//
//	{
//		layer4 {
//			pqproxy/:443 {
//				route {
//					pqproxy
//				}
//			}
//		}
//		pqproxy {
//			domain app.example.com {
//				upstream 10.0.0.5:8443 {
//					tls
//				}
//				proxy_protocol v1
//				certificate /etc/ssl/app.pem /etc/ssl/app.key
//			}
//		}
//	}
package pqproxy
