package caddytest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
)

// upstreamName is the name in the certificates of the upstreams.
const upstreamName = "app.internal"

// upstreamGroup is the only group that the upstreams speak, so that the proxy's record of it does not
// depend on which OpenSSL the machine has.
const upstreamGroup = "X25519"

// answer is what an upstream says about the connection that a request came on. Where an upstream
// cannot know a field, it is empty.
type answer struct {
	Server     string `json:"server"`
	ClientIP   string `json:"client_ip"` // as the PROXY header told it
	ClientPort int    `json:"client_port,string"`
	Protocol   string `json:"protocol"` // HTTP/1.1 or HTTP/2.0
	TLS        string `json:"tls"`      // TLSv1.3
	ServerName string `json:"server_name"`
	Authority  string `json:"authority"` // PP2_TYPE_AUTHORITY
	UniqueID   string `json:"unique_id"` // PP2_TYPE_UNIQUE_ID
}

// startNginx runs nginx as an upstream over TLS that insists on a PROXY header and returns its address.
func startNginx(t *testing.T, cert leaf) string {
	t.Helper()
	dir := t.TempDir()
	socket, addr := listen(t)
	config := writeFile(t, dir, "nginx.conf", fmt.Sprintf(`
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr info;
events {}
http {
	access_log off;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	server {
		listen %s ssl http2 proxy_protocol;
		ssl_certificate %s;
		ssl_certificate_key %s;
		ssl_protocols TLSv1.3;
		ssl_ecdh_curve %s;
		location / {
			default_type application/json;
			return 200 '{"server":"nginx","client_ip":"$proxy_protocol_addr","client_port":"$proxy_protocol_port","protocol":"$server_protocol","tls":"$ssl_protocol","server_name":"$ssl_server_name"}';
		}
	}
}
`, addr, cert.chain, cert.key, upstreamGroup))
	cmd := exec.Command(peer(t, "nginx"), "-p", dir, "-c", config, "-e", "stderr")
	// The way nginx hands its sockets to its next binary: the numbers of those already open.
	cmd.Env = append(cmd.Environ(), "NGINX=3;")
	startWithSocket(t, "nginx", cmd, syscall.SIGTERM, socket)
	return addr
}

// nginxReadsTLVs reports whether the machine's nginx reads a PROXY header of version 2 as we write it.
// Before 1.23.3 its buffer is sized for version 1, and a header of more than 107 bytes "is too large"
// (nginx CHANGES, 1.23.3); ours has the TLVs of TLS and is longer. Debian 12 has 1.22.
func nginxReadsTLVs(t *testing.T) bool {
	t.Helper()
	_, out, err := attempt(t, nil, "", peer(t, "nginx"), "-v")
	if err != nil {
		t.Fatal(err)
	}
	var major, minor, patch int
	if _, err := fmt.Sscanf(out, "nginx version: nginx/%d.%d.%d", &major, &minor, &patch); err != nil {
		t.Fatalf("nginx -v says %q: %v", out, err)
	}
	return slices.Compare([]int{major, minor, patch}, []int{1, 23, 3}) >= 0
}

// startHAProxy is startNginx with HAProxy, which also tells two of the TLVs of a version 2 header.
func startHAProxy(t *testing.T, cert leaf) string {
	t.Helper()
	socket, addr := listen(t)
	config := writeFile(t, t.TempDir(), "haproxy.cfg", fmt.Sprintf(`
global
	log stderr format raw local0 info
defaults
	log global
	mode http
	option httplog
	timeout client 60s
	timeout http-request 60s
frontend app
	bind fd@3 accept-proxy ssl crt %s curves %s ssl-min-ver TLSv1.3 alpn h2,http/1.1
	http-request return status 200 content-type application/json lf-string '{"server":"haproxy","client_ip":"%%[src]","client_port":"%%[src_port]","protocol":"HTTP/%%[req.ver]","tls":"%%[ssl_fc_protocol]","server_name":"%%[ssl_fc_sni]","authority":"%%[fc_pp_authority]","unique_id":"%%[fc_pp_unique_id]"}'
`, cert.both, upstreamGroup))
	// Of SIGTERM it dies, of SIGUSR1 it ends when its connections have: should the proxy leave one open,
	// that shows.
	startWithSocket(t, "haproxy", exec.Command(peer(t, "haproxy"), "-db", "-f", config), syscall.SIGUSR1, socket)
	return addr
}

// listen opens a socket on a free port for another program to inherit. The port is taken from this
// moment on, and connections wait in its queue until the program accepts them: nobody has to wait for
// the program to be up.
func listen(t *testing.T) (socket *os.File, addr string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	socket, err = listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	return socket, listener.Addr().String()
}

// startWithSocket runs a server program that inherits a listening socket as descriptor 3.
func startWithSocket(t *testing.T, name string, cmd *exec.Cmd, quit syscall.Signal, socket *os.File) {
	t.Helper()
	cmd.ExtraFiles = []*os.File{socket}
	start(t, name, cmd, quit)
	// Only the program holds it from here: should it die, its clients see that.
	socket.Close()
}
