package pqproxy

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the collectors of this process. They outlive config reloads, so that totals do not start
// over, and are registered on the registry of every config.
var metrics = newCollectors()

type collectors struct {
	connections      *prometheus.CounterVec
	active           prometheus.Gauge
	handshakes       *prometheus.CounterVec
	handshakeSeconds *prometheus.HistogramVec
	upstreamConnect  prometheus.Histogram
	upstreamShakes   *prometheus.CounterVec
	bytes            *prometheus.CounterVec
	domains          *prometheus.GaugeVec
	upstreams        *prometheus.GaugeVec
	healthChecks     *prometheus.CounterVec
	rejected         prometheus.Counter
	orders           *prometheus.CounterVec
	revision         prometheus.Gauge
	syncs            *prometheus.CounterVec
	syncAge          prometheus.Collector
	certificates     prometheus.Collector
	reports          *prometheus.CounterVec
	reportDropped    prometheus.Counter
}

const metricsNamespace, metricsSubsystem = "caddy", "pqproxy"

// The states of an upstream that is checked.
const stateHealthy, stateUnhealthy = "healthy", "unhealthy"

func newCollectors() *collectors {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help}
	}
	histogram := func(name, help string) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{
			Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help,
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}
	}
	return &collectors{
		connections: prometheus.NewCounterVec(prometheus.CounterOpts(opts("connections_total",
			"Connections that ended, by how they ended.")), []string{"end_reason"}),
		active: prometheus.NewGauge(prometheus.GaugeOpts(opts("connections_active",
			"Connections open now. With connections_total they add up to all accepted."))),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts(opts("handshakes_total",
			"Completed handshakes with clients.")), []string{"group", "resumed", "hello_retry"}),
		handshakeSeconds: prometheus.NewHistogramVec(histogram("handshake_seconds",
			"From the complete ClientHello to the client's Finished."), []string{"group"}),
		upstreamConnect: prometheus.NewHistogram(histogram("upstream_connect_seconds",
			"From the start of the dial, name resolution included, to the TCP connection with the upstream.")),
		upstreamShakes: prometheus.NewCounterVec(prometheus.CounterOpts(opts("upstream_handshakes_total",
			"Completed handshakes with upstreams.")), []string{"group", "resumed"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts(opts("bytes_total",
			"Bytes relayed, as the upstream sees them: in is from the client, out is to the client.")), []string{"direction"}),
		domains: prometheus.NewGaugeVec(prometheus.GaugeOpts(opts("domains",
			"Domains in the table, by the source that serves them.")), []string{"source"}),
		upstreams: prometheus.NewGaugeVec(prometheus.GaugeOpts(opts("upstreams",
			"Upstreams that are checked, by what the checks say.")), []string{"state"}),
		healthChecks: prometheus.NewCounterVec(prometheus.CounterOpts(opts("health_checks_total",
			"Checks of upstreams, by how they ended.")), []string{"result"}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts(opts("rejected_records_total",
			"Records of domains that were refused, from whichever source."))),
		orders: prometheus.NewCounterVec(prometheus.CounterOpts(opts("certificate_orders_total",
			"Attempts to obtain or renew a certificate, by how they went.")), []string{"result"}),
		revision: prometheus.NewGauge(prometheus.GaugeOpts(opts("revision",
			"Revision of the management plane's set that is in force; 0 where it has none."))),
		syncs: prometheus.NewCounterVec(prometheus.CounterOpts(opts("sync_total",
			"Polls of the management plane, by how they went.")), []string{"result"}),
		reports: prometheus.NewCounterVec(prometheus.CounterOpts(opts("reports_total",
			"Attempts to report to the management plane, by how they went.")), []string{"result"}),
		reportDropped: prometheus.NewCounter(prometheus.CounterOpts(opts("report_records_dropped_total",
			"Records of connections that the management plane was not told, for want of room. They are counted all the same."))),
		syncAge: syncAge{prometheus.NewDesc(prometheus.BuildFQName(metricsNamespace, metricsSubsystem, "sync_age_seconds"),
			"Since a poll of the management plane last succeeded; before the first, since what is served was kept.", nil, nil)},
		certificates: certGauges{
			states: prometheus.NewDesc(prometheus.BuildFQName(metricsNamespace, metricsSubsystem, "certificates"),
				"Certificates: valid and expired ones that this edge has looked at or was brought, those being obtained, and those that failed and are tried again.", []string{"state"}, nil),
			earliest: prometheus.NewDesc(prometheus.BuildFQName(metricsNamespace, metricsSubsystem, "certificate_earliest_not_after_seconds"),
				"When the first of the certificates that are served expires, tenants' own ones included, in seconds since 1970.", nil, nil),
		},
	}
}

// register puts the collectors on a config's registry. One that is there already is ours: the collectors
// are of the process.
func (m *collectors) register(registry *prometheus.Registry) error {
	for _, c := range []prometheus.Collector{
		m.connections, m.active, m.handshakes, m.handshakeSeconds, m.upstreamConnect, m.upstreamShakes, m.bytes, m.domains, m.rejected,
		m.upstreams, m.healthChecks,
		m.orders, m.revision, m.syncs, m.syncAge, m.certificates,
		m.reports, m.reportDropped,
	} {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(c); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}

// handshake counts a completed handshake with a client.
func (m *collectors) handshake(r *record) {
	s := &r.session
	group := s.group.String()
	m.handshakes.WithLabelValues(group, strconv.FormatBool(s.resumed), strconv.FormatBool(s.helloRetry)).Inc()
	m.handshakeSeconds.WithLabelValues(group).Observe(r.handshake.Seconds())
}

// upstreamHandshake counts a completed handshake with an upstream.
func (m *collectors) upstreamHandshake(s *session) {
	m.upstreamShakes.WithLabelValues(s.group.String(), strconv.FormatBool(s.resumed)).Inc()
}

// ended counts a connection that left its record.
func (m *collectors) ended(r *record) {
	m.connections.WithLabelValues(string(r.reason)).Inc()
	m.bytes.WithLabelValues("in").Add(float64(r.bytesIn))
	m.bytes.WithLabelValues("out").Add(float64(r.bytesOut))
}

// syncAge is a gauge that is there only while a management plane is configured and a set of it is known.
type syncAge struct{ desc *prometheus.Desc }

// Describe implements prometheus.Collector.
func (s syncAge) Describe(descs chan<- *prometheus.Desc) { descs <- s.desc }

// Collect implements prometheus.Collector.
func (s syncAge) Collect(values chan<- prometheus.Metric) {
	st := inForce.Load()
	if st == nil {
		return
	}
	if status := st.syncStatus(); status != nil && status.Staleness != nil {
		values <- prometheus.MustNewConstMetric(s.desc, prometheus.GaugeValue, *status.Staleness)
	}
}

// certGauges are gauges of the state in force.
type certGauges struct{ states, earliest *prometheus.Desc }

// Describe implements prometheus.Collector.
func (g certGauges) Describe(descs chan<- *prometheus.Desc) { descs <- g.states; descs <- g.earliest }

// Collect implements prometheus.Collector.
func (g certGauges) Collect(values chan<- prometheus.Metric) {
	st := inForce.Load()
	if st == nil {
		return
	}
	counts := st.certs.count(time.Now())
	pending, failed := st.certs.orders.summary()
	for state, n := range map[string]int{"valid": counts.valid, "expired": counts.expired, "pending": pending, "failed": failed} {
		values <- prometheus.MustNewConstMetric(g.states, prometheus.GaugeValue, float64(n), state)
	}
	if counts.valid+counts.expired > 0 {
		values <- prometheus.MustNewConstMetric(g.earliest, prometheus.GaugeValue, float64(counts.earliest))
	}
}
