// One of the clients that run the case table: etcd's own Go client.
//
// One operation a line of JSON comes on standard input, one answer a line goes to standard output, in order. What an
// operation means and what an answer holds is said in tests/etcd/src/cases/operation.rs.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/status"
)

type operation struct {
	Name  string            `json:"name"`
	Args  []string          `json:"args"`
	Flags map[string]string `json:"flags"`
	User  string            `json:"user"`
	If    []compare         `json:"if"`
	Then  []operation       `json:"then"`
	Else  []operation       `json:"else"`
}

type compare struct {
	Target string `json:"target"`
	Key    string `json:"key"`
	Prefix bool   `json:"prefix"`
	Result string `json:"result"`
	Value  string `json:"value"`
}

type record struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	Create  int64  `json:"create"`
	Mod     int64  `json:"mod"`
	Version int64  `json:"version"`
	Lease   int64  `json:"lease"`
}

type event struct {
	Delete bool    `json:"delete"`
	Record record  `json:"record"`
	Prev   *record `json:"prev"`
}

type failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

type answer struct {
	Error     *failure `json:"error,omitempty"`
	Revision  int64    `json:"revision,omitempty"`
	Count     *int64   `json:"count,omitempty"`
	More      bool     `json:"more,omitempty"`
	Deleted   *int64   `json:"deleted,omitempty"`
	Records   []record `json:"records,omitempty"`
	Prev      []record `json:"prev,omitempty"`
	Succeeded *bool    `json:"succeeded,omitempty"`
	Responses []answer `json:"responses,omitempty"`
	Events    []event  `json:"events,omitempty"`
	Lines     []string `json:"lines,omitempty"`
	ID        string   `json:"id,omitempty"`
	Number    int64    `json:"number,omitempty"`
}

// The longest that anything is waited for.
const patience = 20 * time.Second

type driver struct {
	config  clientv3.Config
	clients map[string]*clientv3.Client
	watches map[string]*watch
	holds   map[string]*hold
}

type handler func(*driver, context.Context, *clientv3.Client, operation) (answer, error)

var handlers = map[string]handler{}

// Adds the handlers of a family.
func handle(family map[string]handler) bool {
	for name, h := range family {
		handlers[name] = h
	}
	return true
}

func (o operation) arg(i int) string {
	if i < len(o.Args) {
		return o.Args[i]
	}
	return ""
}

func (o operation) has(flag string) bool {
	_, ok := o.Flags[flag]
	return ok
}

func (o operation) number(flag string) int64 { return number(o.Flags[flag]) }

func number(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

func (d *driver) client(user string) (*clientv3.Client, error) {
	if c := d.clients[user]; c != nil {
		return c, nil
	}
	config := d.config
	if user != "" {
		config.Username, config.Password, _ = strings.Cut(user, ":")
	}
	c, err := clientv3.New(config)
	if err == nil {
		d.clients[user] = c
	}
	return c, err
}

// What an error is to a user of this client: its code and text, and that it is one of etcd's own.
func failed(err error) *failure {
	known := rpctypes.Error(err)
	var own rpctypes.EtcdError
	if errors.As(known, &own) {
		return &failure{own.Code().String(), own.Error()}
	}
	if s, ok := status.FromError(err); ok {
		return &failure{s.Code().String(), s.Message()}
	}
	return &failure{"Client", err.Error()}
}

func (d *driver) do(o operation) answer {
	h := handlers[o.Name]
	if h == nil {
		return answer{Error: &failure{"Client", "no such operation: " + o.Name}}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := d.client(o.User)
	var a answer
	if err == nil {
		a, err = h(d, ctx, c, o)
	}
	if err != nil {
		a.Error = failed(err)
	}
	// A token is as old as its client: the next operation of a named user asks for a new one.
	if o.User != "" && d.clients[o.User] != nil {
		d.clients[o.User].Close()
		delete(d.clients, o.User)
	}
	return a
}

func toRecord(kv *mvccpb.KeyValue) record {
	return record{string(kv.Key), string(kv.Value), kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease}
}

func toRecords(kvs []*mvccpb.KeyValue) []record {
	var all []record
	for _, kv := range kvs {
		all = append(all, toRecord(kv))
	}
	return all
}

func at(h *etcdserverpb.ResponseHeader) int64 { return h.GetRevision() }

func main() {
	endpoints := flag.String("endpoints", "", "client URLs")
	ca := flag.String("cacert", "", "authority")
	cert := flag.String("cert", "", "certificate")
	key := flag.String("key", "", "its key")
	flag.Parse()
	d := driver{
		config:  clientv3.Config{Endpoints: strings.Split(*endpoints, ","), DialTimeout: patience, Logger: zap.NewNop()},
		clients: map[string]*clientv3.Client{},
		watches: map[string]*watch{},
		holds:   map[string]*hold{},
	}
	if *ca != "" {
		info := transport.TLSInfo{TrustedCAFile: *ca, CertFile: *cert, KeyFile: *key}
		config, err := info.ClientConfig()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		config.MinVersion = tls.VersionTLS12
		d.config.TLS = config
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(make([]byte, 1<<20), 1<<24)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var o operation
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			fmt.Fprintln(os.Stderr, "not an operation:", err)
			os.Exit(2)
		}
		if err := out.Encode(d.do(o)); err != nil {
			os.Exit(1)
		}
	}
}
