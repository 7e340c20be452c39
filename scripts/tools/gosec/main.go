// Command gosec runs gosec (github.com/securego/gosec) with all its rules over the packages of this repository, their tests left
// out, and compares what it finds with the findings that were looked at:
//
//	gosec -reviewed scripts/gosec.txt .
//
// It is gosec's own library: its command brings the clients of several language models besides, which take many times as long
// to build as the rest.
//
// Each line of the list is a rule, where it is, how many findings of it are there, and why they are no fault:
//
//	G304 certs.go 2 the operator names the files
//	G404 bench/ - measures, and keeps no secrets
//
// A place that ends in a slash is a folder with all below it, ./ the repository; the number is then -, any. A line for the file
// itself comes before one for a folder that it is in. What is found and not in the list, more or fewer findings than it says,
// and a line that nothing is found for any more end the command with status 1: look at the finding, mend it, or say in the
// list why it may stay.
package main

import (
	"bufio"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/securego/gosec/v2"
	"github.com/securego/gosec/v2/analyzers"
	"github.com/securego/gosec/v2/rules"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("gosec: ")
	reviewed := flag.String("reviewed", "", "the `file` of findings that were looked at")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("name the folder to look at")
	}
	if err := run(os.Stdout, flag.Arg(0), *reviewed); err != nil {
		log.Fatal(err)
	}
}

// place is a rule in a file, or in a folder.
type place struct{ rule, file string }

// any is the number of findings in a folder.
const any = -1

func run(w io.Writer, root, reviewed string) error {
	known := map[place]int{}
	if reviewed != "" {
		var err error
		if known, err = readReviewed(reviewed); err != nil {
			return err
		}
	}
	found, err := findings(root)
	if err != nil {
		return err
	}
	wrong := 0
	used := map[place]bool{}
	for _, p := range sorted(found) {
		line, ok := lineOf(known, p)
		used[line] = ok
		if ok && (known[line] == any || known[line] == len(found[p])) {
			continue
		}
		wrong++
		fmt.Fprintf(w, "%s %s: %d findings, %d were looked at\n", p.rule, p.file, len(found[p]), known[line])
		for _, text := range found[p] {
			fmt.Fprintln(w, "\t"+text)
		}
	}
	for _, line := range sorted(known) {
		if !used[line] {
			wrong++
			fmt.Fprintf(w, "%s %s: nothing is found any more; take the line away\n", line.rule, line.file)
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d places differ from %s", wrong, cmp.Or(reviewed, "nothing"))
	}
	return nil
}

func sorted[T interface{}](places map[place]T) []place {
	return slices.SortedFunc(maps.Keys(places), func(a, b place) int {
		return cmp.Or(strings.Compare(a.file, b.file), strings.Compare(a.rule, b.rule))
	})
}

// lineOf returns the line of the list that is for a place: its own, or that of the nearest folder that has one.
func lineOf(known map[place]int, p place) (place, bool) {
	for file := p.file; ; {
		line := place{p.rule, file}
		if _, ok := known[line]; ok {
			return line, true
		}
		if file == "./" {
			return p, false
		}
		if file = path.Dir(strings.TrimSuffix(file, "/")) + "/"; file == "/" {
			return p, false
		}
	}
}

// readReviewed reads the list.
func readReviewed(name string) (map[place]int, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	known := map[place]int{}
	lines := bufio.NewScanner(file)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		words := strings.Fields(line)
		if len(words) < 5 {
			return nil, fmt.Errorf("%s:%d: write a rule, a place, a number and a reason of some words", name, n)
		}
		p, count := place{words[0], words[1]}, any
		if !strings.HasSuffix(p.file, "/") {
			if count, err = strconv.Atoi(words[2]); err != nil || count < 1 {
				return nil, fmt.Errorf("%s:%d: how many findings there are is not said", name, n)
			}
		} else if words[2] != "-" {
			return nil, fmt.Errorf("%s:%d: the number of a folder is -", name, n)
		}
		if _, twice := known[p]; twice {
			return nil, fmt.Errorf("%s:%d: the rule and the place are there twice", name, n)
		}
		known[p] = count
	}
	return known, lines.Err()
}

// findings returns what gosec finds under root, by place.
func findings(root string) (map[place][]string, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	config := gosec.NewConfig()
	config.SetGlobal(gosec.NoSecRequireRules, "true")
	config.SetGlobal(gosec.NoSecRequireJustification, "true")
	analyzer := gosec.NewAnalyzer(config, false, false, false, runtime.NumCPU(), log.New(io.Discard, "", 0))
	analyzer.LoadRules(rules.Generate(false).RulesInfo())
	analyzer.LoadAnalyzers(analyzers.Generate(false).AnalyzersInfo())
	// Hidden folders, and what is a module of its own, are not of this repository's packages.
	packages, err := gosec.PackagePaths(filepath.Join(root, "..."), gosec.ExcludedDirsRegExp([]string{`\.[a-z]+`, "node_modules", "scripts", "testdata"}))
	if err != nil {
		return nil, err
	}
	if err := analyzer.Process(nil, packages...); err != nil {
		return nil, err
	}
	issues, _, faults := analyzer.Report()
	for file, all := range faults {
		for _, fault := range all {
			err = errors.Join(err, fmt.Errorf("%s:%d: %s", file, fault.Line, fault.Err))
		}
	}
	if err != nil {
		return nil, err
	}
	found := map[place][]string{}
	for _, i := range issues {
		file, err := filepath.Rel(root, i.File)
		if err != nil {
			return nil, err
		}
		p := place{i.RuleID, filepath.ToSlash(file)}
		found[p] = append(found[p], fmt.Sprintf("line %s: %s (severity %s, confidence %s)", i.Line, i.What, i.Severity, i.Confidence))
	}
	for _, all := range found {
		slices.Sort(all)
	}
	return found, nil
}
