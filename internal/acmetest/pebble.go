package acmetest

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/letsencrypt/pebble/v2/acme"
	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/core"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// pebble is Pebble, wired as its own main function does.
type pebble struct {
	// mu lets one request into Pebble at a time. Its handlers lock orders twice over and change some fields
	// without a lock: polling an order in the moment in which it is issued would hang or race. Validations are
	// not under it: a client that polls an order, instead of its authorizations, while a challenge fails may
	// still hang Pebble, which Close reports.
	mu sync.Mutex

	db  *db.MemoryStore
	ca  *ca.CAImpl
	va  *va.VAImpl
	wfe http.Handler
}

// environment is held while a server's settings are in the environment, which is all that Pebble reads them from.
var environment sync.Mutex

func (p *pebble) start(opts Options, httpPort, tlsPort int, resolver string) error {
	p.db = db.NewMemoryStore()
	for id, key := range opts.ExternalAccounts {
		if err := p.db.AddExternalAccountKeyByID(id, key); err != nil {
			return fmt.Errorf("adding external account %q", id) // the cause may hold the key
		}
	}
	profiles := make(map[string]ca.Profile, len(opts.Profiles))
	for _, profile := range opts.Profiles {
		profiles[profile.Name] = ca.Profile{Description: profile.Name, ValidityPeriod: uint64(profile.Validity / time.Second)}
	}
	// Not RSA, the default, whose keys take seconds to make under the race detector.
	p.ca = ca.New(opts.Logger, p.db, "", "ecdsa", opts.AlternateChains, max(1, opts.ChainLength), profiles)

	retryAfter := int(opts.RetryAfter / time.Second)
	return withEnvironment(map[string]string{
		"PEBBLE_VA_NOSLEEP":      "1",
		"PEBBLE_VA_ALWAYS_VALID": "",
		"PEBBLE_WFE_NONCEREJECT": strconv.Itoa(opts.RejectNonces),
		"PEBBLE_AUTHZREUSE":      "100", // always; "0" would be one time of 100. See retire.
	}, func() {
		p.va = va.New(opts.Logger, httpPort, tlsPort, true, resolver, p.db)
		frontend := wfe.New(opts.Logger, p.db, p.va, p.ca, []string{"ca.test"}, true, len(opts.ExternalAccounts) > 0, retryAfter, retryAfter)
		p.wfe = frontend.Handler()
	})
}

// withEnvironment calls f with variables set, and puts back what they were.
func withEnvironment(vars map[string]string, f func()) error {
	environment.Lock()
	defer environment.Unlock()
	for name, value := range vars {
		before, set := os.LookupEnv(name)
		if err := os.Setenv(name, value); err != nil {
			return err
		}
		defer func() {
			if set {
				_ = os.Setenv(name, before) // as it was set once
			} else {
				_ = os.Unsetenv(name)
			}
		}()
	}
	f()
	return nil
}

// stop ends the goroutine that waits for validations to do, which holds all of the server's data and which
// nothing exported ends. There must be no more requests.
func (p *pebble) stop() error {
	tasks := reflect.ValueOf(p.va).Elem().FieldByName("tasks")
	if !tasks.IsValid() || tasks.Kind() != reflect.Chan {
		return errors.New("this version of Pebble keeps its validations otherwise: see how to stop them")
	}
	reflect.NewAt(tasks.Type(), unsafe.Pointer(tasks.UnsafeAddr())).Elem().Close()
	return nil
}

// retire takes valid authorizations of an account for a name out of what Pebble finds when it looks for one to reuse.
// An order that has them already keeps them: only the name that they show changes, to its rooted form.
func (p *pebble) retire(account string, identifiers []acme.Identifier) {
	for _, identifier := range identifiers {
		identifier.Value = strings.ToLower(identifier.Value)
		for {
			authz := p.db.FindValidAuthorization(account, identifier)
			if authz == nil {
				break
			}
			authz.Lock()
			authz.Identifier.Value += "."
			authz.Unlock()
		}
	}
}

// setProfile changes what profile an order that was just accepted will have.
func (p *pebble) setProfile(order, profile string) {
	o := p.db.GetOrderByID(order)
	o.Lock()
	defer o.Unlock()
	o.Profile = profile
}

// waitIssued returns the certificate of an order that was just finalized, when Pebble, which signs in the background,
// is done with all that belongs to it.
func (p *pebble) waitIssued(id string) (*x509.Certificate, error) {
	order := p.db.GetOrderByID(id)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(pqtest.Timeout)
	defer limit.Stop()
	for !p.isIssued(order) {
		select {
		case <-tick.C:
		case <-limit.C:
			return nil, fmt.Errorf("order %s is not issued", id)
		}
	}
	p.mendSerial(order)
	return order.CertificateObject.Cert, nil
}

func (p *pebble) isIssued(order *core.Order) bool {
	order.RLock()
	cert, replaces := order.CertificateObject, order.Replaces
	order.RUnlock()
	if cert == nil {
		return false
	}
	if _, err := p.db.GetOrderByIssuedSerial(cert.ID); err != nil {
		return false
	}
	_, serial, err := parseCertID(replaces)
	if err != nil {
		return true
	}
	replaced, err := p.db.GetOrderByIssuedSerial(serial)
	if err != nil {
		return true
	}
	replaced.RLock()
	defer replaced.RUnlock()
	return replaced.IsReplaced
}

// mendSerial has Pebble find an order by its certificate's ARI identifier also where the serial number, in DER, begins
// with a zero (RFC 9773, section 4.1): one of 256 certificates could not be replaced otherwise.
func (p *pebble) mendSerial(order *core.Order) {
	cert := order.CertificateObject
	if cert.Cert.SerialNumber.BitLen()%8 != 0 {
		return
	}
	// It fails only without a certificate.
	_ = p.db.AddOrderByIssuedSerial(&core.Order{
		Order:             acme.Order{Identifiers: order.Identifiers},
		ID:                order.ID,
		AccountID:         order.AccountID,
		CertificateObject: &core.Certificate{ID: "00" + cert.ID},
	})
}

func (p *pebble) setRenewalWindow(leaf *x509.Certificate, start, end time.Time) error {
	info, err := json.Marshal(core.RenewalInfo{SuggestedWindow: core.SuggestedWindow{Start: start.UTC(), End: end.UTC()}})
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.db.SetARIResponse(leaf.SerialNumber, string(info))
}

// parseCertID takes an ARI identifier apart (RFC 9773, section 4.1). The second result is the serial number's bytes in
// hexadecimal, as Pebble looks it up.
func parseCertID(id string) (serial *big.Int, inHex string, err error) {
	_, encoded, ok := strings.Cut(id, ".")
	bytes, err := base64.RawURLEncoding.DecodeString(encoded)
	if !ok || err != nil {
		return nil, "", errors.New("not an ARI identifier")
	}
	return new(big.Int).SetBytes(bytes), fmt.Sprintf("%x", bytes), nil
}
