//go:build !386 && !s390x

package pqtest

import (
	"io"
	"testing"
)

// Two writes that are read as one are told from one write.
func TestUpstreamCountsWrites(t *testing.T) {
	accepting := make(chan struct{})
	up := StartUpstream(t, UpstreamConfig{Handler: func(c *UpstreamConn) {
		<-accepting
		Echo(c)
	}})
	conn := DialRaw(t, up.Addr())
	for range 2 {
		if _, err := conn.Write([]byte("half ")); err != nil {
			t.Fatal(err)
		}
	}
	close(accepting)
	reply := make([]byte, len("half half "))
	if _, err := io.ReadFull(conn, reply); err != nil {
		t.Fatal(err)
	}
	c := up.Next(t)
	if got := string(c.First()); got != "half half " || c.FirstSegments() != 2 {
		t.Errorf("the first read was %q in %d segments", got, c.FirstSegments())
	}
}

func TestUpstreamCountsOneWrite(t *testing.T) {
	up := StartUpstream(t, UpstreamConfig{})
	echo(t, DialRaw(t, up.Addr()))
	if n := up.Next(t).FirstSegments(); n != 1 {
		t.Errorf("one write came in %d segments", n)
	}
}
