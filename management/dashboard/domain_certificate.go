package dashboard

import (
	"strings"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// Wildcard reports whether the domain is one: ACME over HTTP proves none, so it keeps a pair of its own.
func (p *domainPage) Wildcard() bool { return strings.HasPrefix(p.Name, "*.") }

// Own reports whether the tenant brought the certificate.
func (p *domainPage) Own() bool { return p.Domain.Certificate.Source == domain.BYOC }

func showDomainCertificate(c *ctx) error {
	p, err := c.domainPage("/certificate")
	if err != nil {
		return err
	}
	if p.Cert, err = c.plane.FindCertificate(c.ctx, c.who, p.ID); err != nil {
		return err
	}
	if form := c.form.Get(formField); c.refusal != nil && !p.Own() && (form == "acme" || form == "fallback") {
		p.Refusal = c.refusal.Detail
	}
	return c.render("domain_certificate", p.Name+": certificate", p)
}

func uploadCertificate(c *ctx) error {
	cert, err := c.plane.PutCertificate(c.ctx, c.who, c.param("id"), c.value("chain_pem"), c.value("key_pem"), c.match())
	if err != nil {
		return err
	}
	if len(cert.Warnings) > 0 {
		c.flash("warn", "The certificate is in place, with a warning: "+strings.Join(cert.Warnings, " "))
	} else {
		c.flash("ok", "The certificate is in place. Edges serve it within seconds.")
	}
	return c.redirect("/domains/" + c.param("id") + "/certificate")
}

func dropCertificate(c *ctx) error {
	if _, err := c.plane.DeleteCertificate(c.ctx, c.who, c.param("id"), c.match()); err != nil {
		return err
	}
	c.flash("ok", "Your certificate is removed. The edges obtain one by ACME.")
	return c.redirect("/domains/" + c.param("id") + "/certificate")
}

func saveFallback(c *ctx) error {
	if _, err := c.plane.PatchDomain(c.ctx, c.who, c.param("id"), c.body(text("certificate.fallback")), c.match()); err != nil {
		return err
	}
	c.flash("ok", "Saved.")
	return c.redirect("/domains/" + c.param("id") + "/certificate")
}
