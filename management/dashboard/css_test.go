package dashboard

import (
	"regexp"
	"strings"
	"testing"
)

var (
	cssComment  = regexp.MustCompile(`(?s)/\*.*?\*/`)
	cssRule     = regexp.MustCompile(`([^{}]+)\{([^{}]*)\}`)
	cssVar      = regexp.MustCompile(`var\(--([a-z0-9-]+)\)`)
	cssFront    = regexp.MustCompile(`(?:^|[;\s])color: var\(--([a-z0-9-]+)\)`)
	cssBack     = regexp.MustCompile(`(?:^|[;\s])background: var\(--([a-z0-9-]+)\)`)
	cssBorder   = regexp.MustCompile(`(?:^|[;\s])(?:border(?:-[a-z]+)?|outline|border-color): [^;]*var\(--([a-z0-9-]+)\)`)
	cssLiteral  = regexp.MustCompile(`(?:color|background|fill|stroke|border[a-z-]*|outline): [^;]*(#[0-9a-fA-F]{3,8}|\brgb|\bhsl|\b(?:white|black|red|grey|gray)\b)`)
	cssControls = regexp.MustCompile(`(?:^|[\s,>])(?:input|select|textarea|button|\.button)\b|\[aria-invalid\]`)
)

// colourSchemes are the custom properties of both schemes.
func colourSchemes(t *testing.T, css string) map[string]map[string]string {
	t.Helper()
	light, dark, ok := strings.Cut(css, "@media (prefers-color-scheme: dark)")
	if !ok {
		t.Fatal("there is one scheme")
	}
	schemes := map[string]map[string]string{}
	for name, text := range map[string]string{"light": light, "dark": dark} {
		schemes[name] = map[string]string{}
		for _, m := range colourLine.FindAllStringSubmatch(text, -1) {
			if schemes[name][m[1]] == "" {
				schemes[name][m[1]] = m[2]
			}
		}
	}
	return schemes
}

// TestColoursOfRules measures every rule of the style sheet, so that what is added to it is measured too: text 4.5 to 1, what a control or the
// focus is seen by 3 to 1 (WCAG 2.2, 1.4.3 and 1.4.11). --line is for decoration alone, and no rule has a colour of its own, which
// would be the same in both schemes.
func TestColoursOfRules(t *testing.T) {
	raw, err := staticSources.ReadFile("static/style.css")
	if err != nil {
		t.Fatal(err)
	}
	css := cssComment.ReplaceAllString(string(raw), "")
	rules := cssRule.FindAllStringSubmatch(css, -1)
	for scheme, colours := range colourSchemes(t, css) {
		measured := 0
		least := func(selector, front, back string, want float64) {
			t.Helper()
			measured++
			if got := contrast(t, colours[front], colours[back]); got < want {
				t.Errorf("%s, %s: %s on %s has %.2f, want %.1f", scheme, selector, front, back, got, want)
			}
		}
		backs := map[string]bool{"bg": true}
		for _, rule := range rules {
			selector, body := strings.TrimSpace(rule[1]), rule[2]
			for _, m := range cssVar.FindAllStringSubmatch(body, -1) {
				if colours[m[1]] == "" {
					t.Errorf("%s: --%s of %s is not there", scheme, m[1], selector)
				}
			}
			if strings.HasSuffix(selector, ":root") {
				continue
			}
			if m := cssLiteral.FindStringSubmatch(body); m != nil && !strings.HasPrefix(selector, ".qr-") {
				t.Errorf("%s has a colour of its own: %s", selector, m[1])
			}
			front, back := "text", "bg"
			m, n := cssFront.FindStringSubmatch(body), cssBack.FindStringSubmatch(body)
			if m != nil {
				front = m[1]
			}
			if n != nil {
				back = n[1]
				if back != "act" { // a button's: what is in it has no focus of its own
					backs[back] = true
				}
			}
			if m != nil || n != nil && !strings.HasPrefix(selector, ".badge") {
				least(selector, front, back, 4.5)
			}
			for _, b := range cssBorder.FindAllStringSubmatch(body, -1) {
				if b[1] == "line" {
					if cssControls.MatchString(selector) {
						t.Errorf("%s: a control has an edge that is decoration", selector)
					}
					continue
				}
				least(selector, b[1], "bg", 3)
				if n != nil && back != b[1] {
					least(selector, b[1], back, 3)
				}
			}
		}
		for back := range backs {
			least("the focus", "focus", back, 3)
		}
		// Text that keeps quiet, and links, stand on what is raised too; bars of a waterfall on its ground.
		for _, front := range []string{"muted", "link", "text"} {
			least("what is raised", front, "surface", 4.5)
		}
		for _, bar := range []string{"s1", "s2", "s3", "s4", "s5", "s6"} {
			least("a bar", bar, "surface", 3)
		}
		if measured < 60 {
			t.Errorf("only %d pairs were measured", measured)
		}
	}
}

// TestFocusIsSeen wants an outline wherever the focus is (WCAG 2.2, 2.4.7 and 2.4.13), but around the main part, which scripts and the skip
// link give it, and nothing that moves for those who do not want that.
func TestFocusIsSeen(t *testing.T) {
	raw, err := staticSources.ReadFile("static/style.css")
	if err != nil {
		t.Fatal(err)
	}
	css := cssComment.ReplaceAllString(string(raw), "")
	seen := false
	for _, rule := range cssRule.FindAllStringSubmatch(css, -1) {
		selector, body := strings.TrimSpace(rule[1]), rule[2]
		if strings.HasPrefix(selector, ":focus-visible") {
			seen = strings.Contains(body, "outline: 3px solid var(--focus)")
		}
		if strings.Contains(body, "outline: none") || strings.Contains(body, "outline: 0") {
			if selector != "main:focus" {
				t.Errorf("%s takes the outline away", selector)
			}
		}
	}
	if !seen {
		t.Error("the focus has no outline")
	}
	for _, word := range []string{"animation", "transition"} {
		for at := range strings.SplitSeq(css, "\n") {
			if strings.Contains(at, word+":") && !strings.Contains(at, "prefers-reduced-motion: no-preference") {
				t.Errorf("it moves for everybody: %s", at)
			}
		}
	}
}
