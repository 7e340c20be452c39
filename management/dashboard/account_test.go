package dashboard

import (
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/html"
	"rsc.io/qr/coding"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// TestOneTimePasswordPicture wants the picture to say what the link says, in the answer that tells the secret and nowhere else.
func TestOneTimePasswordPicture(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	settings := b.get("/settings")
	picture := func(page *seen) *html.Node {
		return page.find(func(n *html.Node) bool { return n.Data == "svg" && attr(n, "class") == "qr" })
	}
	refused := b.submit(settings, "totp", url.Values{"password": {"not mine at all"}}).want(http.StatusUnprocessableEntity)
	if picture(settings) != nil || picture(refused) != nil || picture(b.get("/settings/totp")) != nil {
		t.Error("a picture without a secret")
	}
	shown := b.submit(settings, "totp", url.Values{"password": {testPassword}}).want(http.StatusOK, "Scan the picture")
	check(t, s, shown)
	svg := picture(shown)
	if svg == nil {
		t.Fatal("no picture")
	}
	secret := attr(shown.find(func(n *html.Node) bool { return has(n, "data-copy") }), "data-copy")
	uri := attr(shown.find(func(n *html.Node) bool { return strings.HasPrefix(attr(n, "href"), "otpauth:") }), "href")
	label := attr(svg, "aria-label")
	if attr(svg, "role") != "img" || label == "" || strings.Contains(label, secret) {
		t.Errorf("the picture is %v", svg.Attr)
	}
	if read := readQR(t, svg); read != uri || !strings.Contains(read, "secret="+secret) {
		t.Errorf("the picture says %q, the link %q", read, uri)
	}

	again := b.submit(settings, "totp", url.Values{"password": {testPassword}})
	for _, page := range []*seen{b.follow(again), b.get("/settings/totp"), b.get("/settings")} {
		if picture(page) != nil || strings.Contains(page.body, secret) {
			t.Errorf("%s tells it twice", page.path)
		}
	}
	if log := s.log.String(); strings.Contains(log, secret) || strings.Contains(log, "otpauth") {
		t.Error("the log tells the secret")
	}
	if qrSVG(strings.Repeat("x", 4000)) != "" {
		t.Error("a picture of what is too long for one")
	}
}

var qrRun = regexp.MustCompile(`M(\d+) (\d+)h(\d+)v1h-(\d+)z`)

// readQR reads a QR code of one block of bytes, from what is drawn.
func readQR(t *testing.T, svg *html.Node) string {
	t.Helper()
	var width int
	dark := map[[2]int]bool{}
	for n := range svg.Descendants() {
		switch attr(n, "class") {
		case "qr-light":
			width, _ = strconv.Atoi(attr(n, "width"))
		case "qr-dark":
			runs := qrRun.FindAllStringSubmatch(attr(n, "d"), -1)
			if qrRun.ReplaceAllString(attr(n, "d"), "") != "" {
				t.Fatal("the path has something else")
			}
			for _, run := range runs {
				var v [4]int
				for i := range v {
					v[i], _ = strconv.Atoi(run[i+1])
				}
				if v[2] != v[3] {
					t.Fatalf("the run %s is no rectangle", run[0])
				}
				for x := range v[2] {
					dark[[2]int{v[0] + x, v[1]}] = true
				}
			}
		}
	}
	size := width - 8 // the quiet zone is four modules wide (ISO/IEC 18004)
	version := (size - 17) / 4
	if version < 1 || version > 40 || size != 17+4*version {
		t.Fatalf("%d modules is no QR code", size)
	}
	for at := range dark {
		if at[0] < 4 || at[1] < 4 || at[0] >= 4+size || at[1] >= 4+size {
			t.Fatal("the quiet zone is not quiet")
		}
	}
	plan, err := coding.NewPlan(coding.Version(version), coding.M, 0)
	if err != nil {
		t.Fatal(err)
	}
	bits := make([]bool, 8*plan.DataBytes)
	for y, row := range plan.Pixel {
		for x, pixel := range row {
			black := dark[[2]int{x + 4, y + 4}]
			switch pixel.Role() {
			case coding.Data:
				bits[pixel.Offset()] = black != (pixel&coding.Invert != 0)
			case coding.Check, coding.Extra:
			default:
				if want := pixel&coding.Black != 0; black != want {
					t.Fatalf("the module %d, %d of the pattern is wrong", x, y)
				}
			}
		}
	}
	number := func(n int) (v int) {
		for range n {
			v <<= 1
			if bits[0] {
				v |= 1
			}
			bits = bits[1:]
		}
		return v
	}
	if mode := number(4); mode != 4 {
		t.Fatalf("mode %d is not bytes", mode)
	}
	length := 8
	if version > 9 {
		length = 16
	}
	text := make([]byte, number(length))
	for i := range text {
		text[i] = byte(number(8))
	}
	return string(text)
}

// TestLeaveFromSettings has members of every role leave by themselves, and the last owner told why not.
func TestLeaveFromSettings(t *testing.T) {
	s := newSite(t)
	root := s.signedIn()
	page := root.get("/settings").want(http.StatusOK, "Leave the tenant")
	refused := root.submit(page, "leave", nil).want(http.StatusConflict, "A tenant keeps its last owner")
	check(t, s, refused)
	if in := refused.find(func(n *html.Node) bool { return attr(n, "id") == "form-leave" }); !strings.Contains(textOf(in), "keeps its last owner") {
		t.Error("the reason is not where it was asked")
	}
	gone := root.submit(page, "delete_account", url.Values{"password": {testPassword}})
	check(t, s, gone.want(http.StatusConflict, "You are the last operator"))

	for _, role := range []management.Role{management.Viewer, management.Operator, management.Admin, management.Owner} {
		email := string(role) + "@example.com"
		b := s.memberBrowser(email, role)
		page := b.get("/settings").want(http.StatusOK, "Your role"+string(role))
		check(t, s, page)
		left := b.follow(b.submit(page, "leave", nil).leadsTo("/settings")).want(http.StatusOK, "You have left the tenant.", email)
		check(t, s, left)
		if left.find(func(n *html.Node) bool { return attr(n, "id") == "form-leave" }) != nil {
			t.Error("there is a tenant to leave still")
		}
		b.get("/domains").want(http.StatusForbidden)
		check(t, s, b.submit(left, "delete_account", url.Values{"password": {"not mine at all"}}).want(http.StatusUnprocessableEntity, "is not your password"))
		b.follow(b.submit(left, "delete_account", url.Values{"password": {"password of a member"}}).leadsTo("/login")).want(http.StatusOK, "Your account is deleted.")
		if b.cookies[auth.SessionCookie] != nil {
			t.Error("the session is still there")
		}
	}
	members, _, err := s.plane.FindMembers(t.Context(), s.root, management.Page{Limit: 10})
	if err != nil || len(members) != 1 {
		t.Errorf("%d members, %v", len(members), err)
	}
	// Nobody leaves for another: the form has no name in it, whatever is added.
	victim := s.memberBrowser("victim@example.com", management.Viewer)
	admin := s.memberBrowser("attacker@example.com", management.Viewer)
	admin.submit(admin.get("/settings"), "leave", url.Values{"user": {s.made.User.ID}, "id": {s.made.User.ID}}).leadsTo("/settings")
	victim.get("/domains").want(http.StatusOK)
	root.get("/members").want(http.StatusOK, "victim@example.com")
}
