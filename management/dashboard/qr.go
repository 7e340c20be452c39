package dashboard

import (
	"fmt"
	"html/template"
	"strings"

	"rsc.io/qr"
)

// qrQuiet is how many modules around a QR code are light (ISO/IEC 18004 section 6.3.8, quiet zone).
const qrQuiet = 4

// qrSVG draws a text as a QR code; empty: it is too long for one. The picture tells the text to whoever sees it.
func qrSVG(text string) template.HTML {
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		return ""
	}
	var out strings.Builder
	size := code.Size + 2*qrQuiet
	fmt.Fprintf(&out, `<svg class="qr" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="QR code for an app on another device" shape-rendering="crispEdges">`,
		size, size, 4*size, 4*size)
	fmt.Fprintf(&out, `<rect class="qr-light" width="%d" height="%d"/><path class="qr-dark" d="`, size, size)
	for y := range code.Size {
		for x := 0; x < code.Size; x++ {
			from := x
			for code.Black(x, y) {
				x++
			}
			if n := x - from; n > 0 {
				fmt.Fprintf(&out, "M%d %dh%dv1h-%dz", from+qrQuiet, y+qrQuiet, n, n)
			}
		}
	}
	out.WriteString(`"/></svg>`)
	return template.HTML(out.String())
}
