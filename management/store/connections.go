package store

import (
	"context"
	"database/sql"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/pace"
	"github.com/pqproxy/caddy-pqproxy/management"
)

var connectionColumns = []string{
	"at", "tenant_id", "domain_id", "domain", "edge", "client_ip", "client_bits", "groupname", "post_quantum", "refused", "end_reason", "alpn",
	"detail",
}

const connectionFields = `n, at, tenant_id, domain_id, domain, edge, client_ip, client_bits, groupname, post_quantum, end_reason, alpn, detail`

// storedDetail is what of a record is in its document.
type storedDetail struct {
	ID string `json:"id"`
	sparseDetail
}

// sparseDetail is management.ConnectionDetail without what is empty, which is most of it.
type sparseDetail struct {
	Region     string `json:"region,omitempty"`
	ServerName string `json:"server_name,omitempty"`
	Source     string `json:"source,omitempty"`
	ClientPort uint16 `json:"client_port,omitempty"`

	TLSVersion         string `json:"tls_version,omitempty"`
	CipherSuite        string `json:"cipher_suite,omitempty"`
	OfferedPostQuantum bool   `json:"offered_post_quantum,omitempty"`
	HelloRetry         bool   `json:"hello_retry,omitempty"`
	Resumed            bool   `json:"resumed,omitempty"`

	Upstream            string `json:"upstream,omitempty"`
	UpstreamGroup       string `json:"upstream_group,omitempty"`
	UpstreamPostQuantum bool   `json:"upstream_post_quantum,omitempty"`
	UpstreamResumed     bool   `json:"upstream_resumed,omitempty"`
	ProxyProtocol       string `json:"proxy_protocol,omitempty"`

	HelloWait         float64 `json:"hello_wait,omitempty"`
	Handshake         float64 `json:"handshake,omitempty"`
	UpstreamConnect   float64 `json:"upstream_connect,omitempty"`
	UpstreamHandshake float64 `json:"upstream_handshake,omitempty"`
	FirstByte         float64 `json:"first_byte,omitempty"`
	Duration          float64 `json:"duration,omitempty"`

	BytesIn  int64  `json:"bytes_in,omitempty"`
	BytesOut int64  `json:"bytes_out,omitempty"`
	ClosedBy string `json:"closed_by,omitempty"`
	Error    string `json:"error,omitempty"`
}

func connectionRows(records []*management.Connection) [][]any {
	rows := make([][]any, len(records))
	pace := pace.Pace{Free: -1}
	for i, c := range records {
		pace.Step()
		detail, _ := text(storedDetail{c.ID, sparseDetail(c.ConnectionDetail)}) // texts and finite numbers: nothing in it can fail
		var ip []byte
		bits := 0
		if c.Client.IsValid() {
			addr := c.Client.Addr().As16()
			ip, bits = addr[:], c.Client.Bits()
		}
		rows[i] = []any{
			c.Time.UnixMicro(), c.Tenant, c.DomainID, c.Domain, c.Edge, ip, int16(bits), c.Group, flag(c.PostQuantum), flag(c.Refused), c.EndReason,
			c.ALPN, detail,
		}
	}
	return rows
}

func flag(b bool) int16 {
	if b {
		return 1
	}
	return 0
}

// ingestRecords stores the records of a report in SQLite's file of records, unless it has them.
func (t *tx) ingestRecords(in *management.Ingest, records [][]any) error {
	var last uint64
	started := in.Edge.StartedAt.UnixMicro()
	err := t.get(`SELECT last FROM edge_runs WHERE edge = ? AND started_at = ?`, []any{in.Edge.Name, started}, &last)
	if err == nil && in.Sequence <= last {
		return nil
	}
	if err != nil && !errors.Is(err, management.ErrNoRow) {
		return err
	}
	_, err = t.exec(`INSERT INTO edge_runs (edge, started_at, last, last_seen) VALUES (?, ?, ?, ?)
		ON CONFLICT (edge, started_at) DO UPDATE SET last = excluded.last, last_seen = excluded.last_seen`,
		in.Edge.Name, started, int64(in.Sequence), in.Now.UnixMicro())
	if err != nil {
		return err
	}
	if last == 0 {
		if err := t.trimRuns("edge_runs", in.Edge.Name); err != nil {
			return err
		}
	}
	return insertRows(t, `INSERT INTO connections (`+strings.Join(connectionColumns, ", ")+`) VALUES `, ``, len(connectionColumns), records)
}

// observed calls fn with a transaction that reads records.
func (s *Store) observed(ctx context.Context, fn func(t *tx) error) error {
	return s.fault(ctx, s.inTx(ctx, s.observeRead, &sql.TxOptions{ReadOnly: true}, false, func(on management.Tx) error { return fn(on.(*tx)) }))
}

// where returns the condition of a filter.
func where(f *management.ConnectionFilter) (condition string, args []any) {
	add := func(more string, values ...any) {
		condition += ` AND ` + more
		args = append(args, values...)
	}
	condition, args = `tenant_id = ?`, []any{f.TenantID}
	if f.DomainID != "" {
		// Not by the index of the tenant's rows: SQLite keeps no statistics by which it would know better.
		condition, args = `COALESCE(tenant_id, '') = ? AND domain_id = ?`, []any{f.TenantID, f.DomainID}
	}
	add(`at >= ? AND at < ?`, f.From.UnixMicro(), f.To.UnixMicro())
	if f.Domain != "" {
		add(`domain = ?`, f.Domain)
	}
	if f.Group != "" {
		add(`groupname = ?`, f.Group)
	}
	if f.Post != nil {
		add(`post_quantum = ?`, flag(*f.Post))
	}
	if f.EndReason != "" {
		add(`end_reason = ?`, f.EndReason)
	}
	if f.Client.IsValid() {
		low, high := bounds(f.Client)
		add(`client_ip >= ? AND client_ip <= ?`, low, high)
	}
	if !f.BeforeTime.IsZero() {
		at := f.BeforeTime.UnixMicro()
		add(`at <= ? AND (at < ? OR n < ?)`, at, at, f.BeforeNumber)
	}
	return condition, args
}

// bounds returns the first and the last address of a network, as addresses are stored.
func bounds(network netip.Prefix) (low, high []byte) {
	bits := network.Bits()
	if network.Addr().Is4() {
		bits += 96
	}
	first := network.Masked().Addr().As16()
	last := first
	for i := bits; i < 128; i++ {
		last[i/8] |= 1 << (7 - i%8)
	}
	return first[:], last[:]
}

// FindConnections returns records, newest first.
func (s *Store) FindConnections(ctx context.Context, f *management.ConnectionFilter) (found []*management.Connection, err error) {
	condition, args := where(f)
	err = s.observed(ctx, func(t *tx) error {
		found, err = t.connections(`SELECT `+connectionFields+` FROM connections WHERE `+condition+` ORDER BY at DESC, n DESC LIMIT ?`, append(args, f.Limit)...)
		return err
	})
	return found, err
}

func (t *tx) connections(query string, args ...any) (found []*management.Connection, err error) {
	err = t.each(query, args, func(rows *sql.Rows) error {
		c := new(management.Connection)
		var detail storedDetail
		var ip []byte
		var bits, post int
		if err := rows.Scan(&c.Number, moment{&c.Time}, &c.Tenant, &c.DomainID, &c.Domain, &c.Edge, &ip, &bits, &c.Group, &post, &c.EndReason, &c.ALPN,
			document{&detail}); err != nil {
			return err
		}
		c.PostQuantum = post == 1
		c.ID, c.ConnectionDetail = detail.ID, management.ConnectionDetail(detail.sparseDetail)
		if addr, ok := netip.AddrFromSlice(ip); ok {
			c.Client = netip.PrefixFrom(addr.Unmap(), bits)
			c.ClientIP = management.ShowClient(c.Client)
		}
		found = append(found, c)
		return nil
	})
	return found, err
}

// FindConnectionsAfter returns records as they came.
func (s *Store) FindConnectionsAfter(ctx context.Context, number int64, tenants []string, limit int) (found []*management.Connection, last int64, err error) {
	limited, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	err = s.observed(limited, func(t *tx) error {
		// First, so that what is not found with it is found the next time.
		if err := t.get(`SELECT COALESCE(MAX(n), 0) FROM connections`, nil, &last); err != nil || len(tenants) == 0 {
			return err
		}
		args := []any{number}
		for _, id := range tenants {
			args = append(args, id)
		}
		found, err = t.connections(`SELECT `+connectionFields+` FROM connections WHERE n > ? AND tenant_id IN (?`+strings.Repeat(`, ?`, len(tenants)-1)+`)
			ORDER BY n LIMIT ?`, append(args, limit)...)
		return err
	})
	return found, last, err
}

// mapped is what the 16 bytes of an IPv4 address begin with.
var mapped = []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}

// CountRefused counts refused connections by network: 15 of the 16 bytes are a /24, 6 a /48.
func (s *Store) CountRefused(ctx context.Context, f *management.ConnectionFilter, scan int) (found []*management.RefusedClient, scanned int, err error) {
	condition, args := where(f)
	args = append([]any{mapped}, args...)
	err = s.observed(ctx, func(t *tx) error {
		found, scanned = nil, 0
		return t.each(`SELECT network, alpn, COUNT(*), MAX(at), CAST(SUM(COUNT(*)) OVER () AS BIGINT) FROM (
			SELECT CASE WHEN substr(client_ip, 1, 12) = ? THEN substr(client_ip, 1, 15) ELSE substr(client_ip, 1, 6) END AS network, alpn, at
			FROM connections WHERE `+condition+` AND refused = 1 ORDER BY at DESC LIMIT ?
		) AS r GROUP BY network, alpn ORDER BY COUNT(*) DESC, MAX(at) DESC, alpn LIMIT ?`, append(args, scan, f.Limit), func(rows *sql.Rows) error {
			c := new(management.RefusedClient)
			var network []byte
			if err := rows.Scan(&network, &c.ALPN, &c.Refused, moment{&c.LastSeen}, &scanned); err != nil {
				return err
			}
			if len(network) > 0 {
				var addr [16]byte
				copy(addr[:], network)
				c.Network = management.ClientPrefix(netip.AddrFrom16(addr))
			}
			found = append(found, c)
			return nil
		})
	})
	return found, scanned, err
}

// runsOutlive is for how much longer than its records it is remembered what an edge's last report was.
const runsOutlive = 7 * 24 * time.Hour

// DeleteConnectionsBefore removes old records. They lie nearly in the order of their times, so those that came first are looked
// at, and no index by time is needed.
func (s *Store) DeleteConnectionsBefore(ctx context.Context, before time.Time, limit int) (int, error) {
	if s.d.name == SQLite {
		err := s.apart(ctx, s.observe, func(t *tx, _ *sql.Conn) error {
			_, err := t.exec(`DELETE FROM edge_runs WHERE last_seen < ?`, before.Add(-runsOutlive).UnixMicro())
			return err
		})
		if err != nil {
			return 0, s.fault(ctx, err)
		}
	}
	return s.deleteConnections(ctx, `SELECT n FROM (SELECT n, at FROM connections ORDER BY n LIMIT ?) AS oldest WHERE at < ?`, limit, before.UnixMicro())
}

// DeleteConnectionsOf removes records of a tenant or a domain.
func (s *Store) DeleteConnectionsOf(ctx context.Context, tenantID, domainID string, limit int) (int, error) {
	if domainID != "" {
		return s.deleteConnections(ctx, `SELECT n FROM connections WHERE domain_id = ? AND tenant_id = ? LIMIT ?`, domainID, tenantID, limit)
	}
	return s.deleteConnections(ctx, `SELECT n FROM connections WHERE tenant_id = ? LIMIT ?`, tenantID, limit)
}

func (s *Store) deleteConnections(ctx context.Context, which string, args ...any) (removed int, err error) {
	limited, cancel := context.WithTimeout(ctx, updateLimit)
	defer cancel()
	err = s.apart(limited, s.observe, func(t *tx, _ *sql.Conn) error {
		n, err := t.exec(`DELETE FROM connections WHERE n IN (`+which+`)`, args...)
		removed = int(n)
		return err
	})
	return removed, s.fault(ctx, err)
}
