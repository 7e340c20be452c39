package netpolicy

import (
	"errors"
	"net/netip"
	"testing"
)

// FuzzCheck: no address and no entry of allow makes anything panic. An IPv4 address, its mapped form and its
// NAT64 form are judged alike. What package netip calls special is refused by default. An entry only opens,
// never the classes that stay closed, and nothing guarded that it does not lie within.
func FuzzCheck(f *testing.F) {
	strict, err := New(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, ip []byte, zone, entry string) {
		addr, _ := netip.AddrFromSlice(ip)
		addr = addr.WithZone(zone)
		byDefault := checkOne(t, strict, addr)

		if plain := addr.Unmap(); byDefault == nil && (!addr.IsValid() || addr.Zone() != "" || !plain.IsGlobalUnicast() || plain.IsPrivate()) {
			t.Fatalf("%s is allowed by default", addr)
		}
		p, err := New([]string{entry})
		if (err == nil) != (p != nil) {
			t.Fatalf("New returned %v and %v", p, err)
		}
		if err != nil {
			return
		}
		denied := checkOne(t, p, addr)
		if denied == nil || byDefault == nil {
			checkOpened(t, addr, entry, byDefault, denied)
		}
	})
}

// checkOpened compares what is refused by default with what is refused where entry is allowed.
func checkOpened(t *testing.T, addr netip.Addr, entry string, byDefault, denied *DeniedError) {
	switch {
	case byDefault == nil:
		if denied != nil {
			t.Fatalf("allowing %q closes %s: %v", entry, addr, denied)
		}
		return
	case byDefault.Class == "zone" || byDefault.Class == "no address":
		t.Fatalf("%q opens %s (%s)", entry, addr, byDefault.Class)
	}
	switch r := rangeOf(byDefault.Range); {
	case r.opening == never:
		t.Fatalf("%q opens %s in %s", entry, addr, r.prefix)
	case r.opening == byName:
		parsed, err := parseEntry(entry)
		if err != nil || !covers(r.prefix, parsed) {
			t.Fatalf("%q opens %s, but is not within %s", entry, addr, r.prefix)
		}
	}
}

// checkOne judges addr in all its forms.
func checkOne(t *testing.T, p *Policy, addr netip.Addr) *DeniedError {
	denied := asDenied(t, p.Check(addr))
	if denied != nil && denied.Class != "no address" {
		inner := addr.Unmap().WithZone("")
		if denied.Range.Addr().Is4() && inner.Is6() {
			inner = lastFour(inner)
		}
		if denied.Addr != addr || !denied.Range.Contains(inner) {
			t.Fatalf("%s is refused as %s in %s", addr, denied.Addr, denied.Range)
		}
	}
	port := netip.AddrPortFrom(addr, 443).String()
	if addr.IsValid() {
		if err := p.CheckDial(port); addr.Zone() == "" && (err == nil) != (denied == nil) {
			t.Fatalf("CheckDial of %s: %v, Check: %v", port, err, denied)
		}
		if err := p.Control("tcp", port, nil); addr.Zone() == "" && (err == nil) != (denied == nil) {
			t.Fatalf("Control of %s: %v, Check: %v", port, err, denied)
		}
	}
	if plain := addr.Unmap(); plain.Is4() && addr.Zone() == "" {
		bytes := plain.As16()
		mapped := netip.AddrFrom16(bytes)
		copy(bytes[:12], []byte{0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0})
		for _, form := range []netip.Addr{plain, mapped, netip.AddrFrom16(bytes)} {
			other := asDenied(t, p.Check(form))
			if (other == nil) != (denied == nil) || other != nil && (other.Range != denied.Range || other.Class != denied.Class) {
				t.Fatalf("%s: %v, but %s: %v", addr, denied, form, other)
			}
		}
	}
	return denied
}

func asDenied(t *testing.T, err error) *DeniedError {
	if err == nil {
		return nil
	}
	var denied *DeniedError
	if !errors.As(err, &denied) || err.Error() == "" || denied.Class == "" {
		t.Fatalf("refused with %#v", err)
	}
	return denied
}
