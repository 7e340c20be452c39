package pqproxy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// rootPackage is the import path of this package.
const rootPackage = "github.com/pqproxy/caddy-pqproxy"

// mayImport says which packages of this repository the packages of it import outside of tests, by folder.
var mayImport = map[string][]string{
	".":                    {"domain", "netpolicy", "probe", "internal/caddyblock", "internal/edgereport", "internal/feed", "internal/feedsig", "internal/id", "internal/keptset", "internal/pace", "internal/proxyheader"},
	"domain":               nil,
	"netpolicy":            nil,
	"probe":                {"internal/proxyheader"},
	"internal/caddyblock":  nil,
	"internal/edgereport":  {"domain", "internal/pace"},
	"internal/feed":        {"internal/feedsig"},
	"internal/feedsig":     nil,
	"internal/id":          nil,
	"internal/keptset":     nil,
	"internal/pace":        nil,
	"internal/proxyheader": nil,
	"internal/acmetest":    {"internal/pqtest"},
	"internal/pgtest":      nil,
	"internal/pqtest":      nil,
	"management":           {"domain", "netpolicy", "probe", "internal/edgereport", "internal/id"},
	"management/store":     {"domain", "internal/edgereport", "internal/pace", "management"},
	"management/dashboard": {"domain", "management", "management/auth"},
	"management/api":       {"domain", "internal/edgereport", "management", "management/auth"},
	"management/auth":      {"management"},
	"management/mail":      nil,
	"management/vault":     nil,
	"management/dnscheck":  {"netpolicy"},
	"cmd/pqproxy":          {".", "management/module"},
	"caddytest":            nil,
	"bench":                {".", "bench/internal/lab"},
	"bench/internal/lab":   nil,
	"bench/live":           {".", "bench/internal/lab"},
	"bench/certs":          {".", "bench/internal/lab"},
	"bench/management":     {"bench/internal/lab", "domain", "internal/edgereport", "internal/id", "internal/pgtest", "management", "management/auth", "management/store"},
	"examples/quickstart":  {".", "probe", "management/module", "examples/internal/demo"},
	"examples/saas":        {".", "probe", "management/module", "examples/internal/demo"},

	"examples/internal/demo":     nil,
	"examples/internal/demotest": nil,

	"management/module": {
		"domain", "internal/caddyblock", "internal/feedsig", "internal/id", "management", "management/api", "management/auth", "management/dashboard",
		"management/dnscheck", "management/mail", "management/store", "management/vault", "netpolicy", "probe",
	},
	"management/store/storetest": {"internal/pgtest", "management/store"},
}

// mustNotKnow says which imports packages must do without, tests included: they are used by both planes.
var mustNotKnow = map[string][]string{
	"domain":               {"github.com/caddyserver/", "github.com/mholt/", "net/http", "database/sql"},
	"netpolicy":            {"github.com/caddyserver/", "github.com/mholt/", "database/sql"},
	"probe":                {"github.com/caddyserver/", "github.com/mholt/", "database/sql"},
	"internal/feedsig":     {"github.com/caddyserver/", "github.com/mholt/", "net/http", "database/sql"},
	"internal/proxyheader": {"github.com/caddyserver/", "github.com/mholt/", "net/http", "database/sql"},
	"internal/edgereport":  {"github.com/caddyserver/", "github.com/mholt/", "net/http", "database/sql"},
	"internal/id":          {"github.com/caddyserver/", "github.com/mholt/", "net/http", "database/sql"},
	"management":           {"github.com/caddyserver/", "github.com/mholt/"},
}

// goFile is a parsed file of this module.
type goFile struct {
	dir, name string // dir is relative to the root
	*ast.File
}

func (f goFile) isTest() bool { return strings.HasSuffix(f.name, "_test.go") }

// goFiles parses all files of this module, down to the comments in front of declarations.
func goFiles(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			_, err := os.Stat(filepath.Join(file, "go.mod"))
			if file != "." && (err == nil || strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules") {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(file) != ".go" {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.ImportsOnly)
		files = append(files, goFile{filepath.ToSlash(filepath.Dir(file)), filepath.Base(file), parsed})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestImportDirection keeps imports pointing one way.
func TestImportDirection(t *testing.T) {
	for _, f := range goFiles(t) {
		allowed, ruled := mayImport[f.dir]
		if !ruled {
			t.Errorf("%s: its folder has no rule in mayImport", path.Join(f.dir, f.name))
		}
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			for _, prefix := range mustNotKnow[f.dir] {
				if strings.HasPrefix(imported, prefix) {
					t.Errorf("%s imports %s", path.Join(f.dir, f.name), imported)
				}
			}
			ours, ok := strings.CutPrefix(imported+"/", rootPackage+"/")
			if !ok || f.isTest() {
				continue
			}
			if ours = path.Clean(ours); !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s; mayImport does not allow it", path.Join(f.dir, f.name), imported)
			}
		}
	}
}

// TestPackageComments wants one package comment in each package, and none in tests.
func TestPackageComments(t *testing.T) {
	comments := make(map[string][]string)
	for _, f := range goFiles(t) {
		if _, ok := comments[f.dir]; !ok {
			comments[f.dir] = nil
		}
		if f.Doc == nil {
			continue
		}
		comments[f.dir] = append(comments[f.dir], f.name)
		if text := f.Doc.Text(); f.Name.Name == "main" && !strings.HasPrefix(text, "Command ") || f.Name.Name != "main" && !strings.HasPrefix(text, "Package "+f.Name.Name+" ") {
			t.Errorf("%s: the package comment begins with %.30q", path.Join(f.dir, f.name), text)
		}
		if f.isTest() {
			t.Errorf("%s: a package comment in a test is read by nobody", path.Join(f.dir, f.name))
		}
	}
	for dir, files := range comments {
		if len(files) != 1 {
			t.Errorf("%s: there are package comments in %q, want one", dir, files)
		}
	}
}

// constant is a string constant.
type constant struct{ name, value string }

// constants returns the string constants of a file whose declared type has the name; "" stands for none.
func constants(t *testing.T, file, typeName string) []constant {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var found []constant
	for _, decl := range parsed.Decls {
		group, ok := decl.(*ast.GenDecl)
		if !ok || group.Tok != token.CONST {
			continue
		}
		for _, s := range group.Specs {
			spec := s.(*ast.ValueSpec)
			declared := ""
			if spec.Type != nil {
				declared = spec.Type.(*ast.Ident).Name
			}
			for i, value := range spec.Values {
				literal, ok := value.(*ast.BasicLit)
				if !ok || literal.Kind != token.STRING || declared != typeName {
					continue
				}
				text, err := strconv.Unquote(literal.Value)
				if err != nil {
					t.Fatal(err)
				}
				found = append(found, constant{spec.Names[i].Name, text})
			}
		}
	}
	if len(found) == 0 {
		t.Fatalf("%s declares no constants of type %q", file, typeName)
	}
	return found
}

// TestLogAndMetricsAreDocumented looks for every end reason, log key and metric in the page about them.
func TestLogAndMetricsAreDocumented(t *testing.T) {
	const page = "docs/connections.md"
	text := read(t, page)
	documented := func(what, name string) {
		t.Helper()
		if !strings.Contains(text, "`"+name+"`") {
			t.Errorf("%s does not document %s `%s`", page, what, name)
		}
	}
	for _, c := range constants(t, "log.go", "endReason") {
		documented("end reason", c.value)
	}
	for _, c := range constants(t, "log.go", "side") {
		documented("closed_by", c.value)
	}
	for _, c := range constants(t, "log.go", "") {
		if strings.HasPrefix(c.name, "key") {
			documented("log key", c.value)
		}
	}
	names, labels := describedMetrics(t)
	for _, name := range names {
		documented("metric", name)
	}
	for _, label := range labels {
		documented("label", label)
	}
}

// TestSyncResultsAreDocumented looks for what to do about each way a poll can go.
func TestSyncResultsAreDocumented(t *testing.T) {
	text := read(t, "docs/operations.md")
	for _, result := range syncResults(t) {
		if !strings.Contains(text, "`"+result+"`") {
			t.Errorf("docs/operations.md does not say what to do about the result `%s` of a poll", result)
		}
	}
}

// describedMetrics returns names and labels of all metrics, whether they have a value yet or not.
func describedMetrics(t *testing.T) (names, labels []string) {
	t.Helper()
	registry := prometheus.NewRegistry()
	if err := metrics.register(registry); err != nil {
		t.Fatal(err)
	}
	descs := make(chan *prometheus.Desc)
	go func() {
		registry.Describe(descs)
		close(descs)
	}()
	// A Desc keeps what it knows to itself and its text.
	about := regexp.MustCompile(`^Desc\{fqName: "([^"]+)".*variableLabels: \{([^}]*)\}\}$`)
	for desc := range descs {
		match := about.FindStringSubmatch(desc.String())
		if match == nil {
			t.Fatalf("not understood: %s", desc)
		}
		names = append(names, match[1])
		if match[2] != "" {
			labels = append(labels, strings.Split(match[2], ",")...)
		}
	}
	slices.Sort(labels)
	return names, slices.Compact(labels)
}

// TestModulesAreListed looks for every Caddy module of this repository in the README.
func TestModulesAreListed(t *testing.T) {
	text := read(t, "README.md")
	for _, id := range caddy.Modules() {
		if strings.Contains(id, "pqproxy") && !strings.Contains(id, "pqproxy_test") && !strings.Contains(text, "`"+id+"`") {
			t.Errorf("README.md does not list module `%s`", id)
		}
	}
}

// TestSecurityClaimsAreShown looks for every test that docs/security.md names: in the folder in front of it, else in the root.
// The folder holds up to the next semicolon.
func TestSecurityClaimsAreShown(t *testing.T) {
	const page = "docs/security.md"
	tests := make(map[string]bool)
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9_]+)\(`)
	for _, f := range goFiles(t) {
		if !f.isTest() {
			continue
		}
		for _, match := range declared.FindAllStringSubmatch(read(t, path.Join(f.dir, f.name)), -1) {
			tests[f.dir+": "+match[1]] = true
		}
	}
	named := regexp.MustCompile("(?:([a-z0-9/]+): )?`((?:Test|Fuzz)[A-Za-z0-9_]+)`|(;)")
	shown := 0
	for n, line := range strings.Split(read(t, page), "\n") {
		dir := "."
		for _, match := range named.FindAllStringSubmatch(line, -1) {
			if match[3] != "" {
				dir = "."
				continue
			}
			if match[1] != "" {
				dir = match[1]
			}
			shown++
			if !tests[dir+": "+match[2]] {
				t.Errorf("%s:%d: there is no test %s in %s", page, n+1, match[2], dir)
			}
		}
	}
	if shown < 50 {
		t.Errorf("%s names %d tests; is it still read as it is written?", page, shown)
	}
}
