//go:build linux

// Package lab is what the programs under bench/ share: proxies as processes pinned to cores, their CPU time and memory,
// certificates, the pattern that relayed bytes are compared with, figures, and the files that results go to; and for those
// that measure pqproxy with many domains the domains, the management plane that hands them out, and clients.
//
//	binary, err := lab.BuildProxy(ctx, dir)
//	p, err := lab.Start(0, "pqproxy", []string{binary, "run", "--config", file}, env, dir, logFile)
//	defer p.Stop()
//	before, err := p.CPUAtRest()
//	// … work …
//	after, err := p.CPUAtRest()
//	used, err := after.Since(before)
package lab

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// BuildProxy builds the command as a user would, without flags, and returns its file, which is in dir.
func BuildProxy(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "pqproxy")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/pqproxy/caddy-pqproxy/cmd/pqproxy")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	fmt.Println("building ./cmd/pqproxy")
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("building ./cmd/pqproxy: %w", err)
	}
	return binary, nil
}

// BinaryVersions names the Go version and the modules that matter, from the binary itself.
func BinaryVersions(file string) string {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	facts := []string{info.GoVersion}
	for _, dep := range info.Deps {
		switch dep.Path {
		case "github.com/caddyserver/caddy/v2", "github.com/mholt/caddy-l4":
			facts = append(facts, dep.Path+" "+dep.Version)
		}
	}
	return strings.Join(facts, ", ")
}

// CleanEnv is the environment of a Go proxy whose files are to be in dir. Nothing is inherited: GOGC, GODEBUG or a
// user's Caddy directories would change what is measured. More is added at the end, such as GOMAXPROCS=1.
func CleanEnv(dir string, more ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir}, more...)
}

// FreeAddrs returns n loopback addresses whose ports were free a moment ago.
func FreeAddrs(n int) ([]string, error) {
	addrs := make([]string, n)
	for i := range addrs {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all at the end, so that no port is given twice
		addrs[i] = l.Addr().String()
	}
	return addrs, nil
}

// RaiseDescriptorLimit makes room for conns connections through a proxy: two descriptors each here (client and
// upstream), two each in the proxy, which inherits the limit; pqproxy itself accepts half of what the limit leaves.
func RaiseDescriptorLimit(conns int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("reading the descriptor limit: %w", err)
	}
	need := uint64(3*conns + 1024)
	if limit.Max < need {
		return fmt.Errorf("the descriptor limit is %d and %d connections need %d: raise it (ulimit -Hn %d)", limit.Max, conns, need, need)
	}
	limit.Cur = limit.Max
	// syscall's, not x/sys/unix's: it also tells the runtime to leave the limit alone in children.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raising the descriptor limit: %w", err)
	}
	return nil
}

// CPUModel returns what /proc/cpuinfo calls the processor, or why it is not known.
func CPUModel() string {
	content, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err.Error()
	}
	var vendor, model string
	for line := range strings.Lines(string(content)) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "model name":
			vendor = strings.TrimSpace(value)
		case "model":
			model = strings.TrimSpace(value)
		}
	}
	return fmt.Sprintf("%s, model %s", vendor, model)
}

// KernelRelease returns what uname calls the release, or why it is not known.
func KernelRelease() string {
	var name syscall.Utsname
	if err := syscall.Uname(&name); err != nil {
		return err.Error()
	}
	var release []byte
	for _, c := range name.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	return string(release)
}

// Commit is empty outside a git checkout; "+" marks changes that are not in it.
func Commit() string {
	head, err := exec.Command("git", "rev-parse", "HEAD").Output()
	if err != nil {
		return ""
	}
	id := strings.TrimSpace(string(head))
	if changes, err := exec.Command("git", "status", "--porcelain").Output(); err == nil && len(changes) > 0 {
		id += "+"
	}
	return id
}

// ModuleRoot returns the folder of this module.
func ModuleRoot() (string, error) {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("finding the module's root (run this inside the repository): %w", err)
	}
	return strings.TrimSpace(string(root)), nil
}

// FreePrefix returns prefix, or where its raw file exists already prefix with a number behind: raw output is kept,
// never replaced. It makes the folder.
func FreePrefix(prefix string) (string, error) {
	if err := os.MkdirAll(filepath.Dir(prefix), 0o755); err != nil {
		return "", err
	}
	free := prefix
	for n := 2; ; n++ {
		_, err := os.Stat(free + RawSuffix)
		if errors.Is(err, os.ErrNotExist) {
			return free, nil
		}
		if err != nil {
			return "", err
		}
		free = fmt.Sprintf("%s-%d", prefix, n)
	}
}
