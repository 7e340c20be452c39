package dnscheck

import (
	"net/netip"
	"strings"
)

// cdnNames are the names under which content delivery networks have their customers' CNAMEs lead.
var cdnNames = []struct{ suffix, cdn string }{
	{"cdn.cloudflare.net", "Cloudflare"},
	{"fastly.net", "Fastly"},
	{"fastlylb.net", "Fastly"},
	{"cloudfront.net", "CloudFront"},
	{"akamai.net", "Akamai"},
	{"akamaiedge.net", "Akamai"},
	{"akamaized.net", "Akamai"},
	{"edgekey.net", "Akamai"},
	{"edgesuite.net", "Akamai"},
}

// cloudflare are the ranges from www.cloudflare.com/ips-v4 and ips-v6: names behind its proxy have addresses of it and no
// CNAME. They change once in years; an address that is missing here costs a sentence in a text.
var cloudflare = prefixes("173.245.48.0/20 103.21.244.0/22 103.22.200.0/22 103.31.4.0/22 141.101.64.0/18 108.162.192.0/18 " +
	"190.93.240.0/20 188.114.96.0/20 197.234.240.0/22 198.41.128.0/17 162.158.0.0/15 104.16.0.0/13 104.24.0.0/14 172.64.0.0/13 131.0.72.0/22 " +
	"2400:cb00::/32 2606:4700::/32 2803:f800::/32 2405:b500::/32 2405:8100::/32 2a06:98c0::/29 2c0f:f248::/32")

func prefixes(list string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range strings.Fields(list) {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// cdnOf returns the network that a name is behind, or nothing.
func cdnOf(chain []string, addrs []netip.Addr) string {
	for _, name := range chain {
		for _, known := range cdnNames {
			if name == known.suffix || strings.HasSuffix(name, "."+known.suffix) {
				return known.cdn
			}
		}
	}
	for _, addr := range addrs {
		for _, prefix := range cloudflare {
			if prefix.Contains(addr) {
				return "Cloudflare"
			}
		}
	}
	return ""
}
