package main

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// A lock or an office, held or waited for.
type hold struct {
	session *concurrency.Session
	held    chan error
	key     func() string
	end     func(context.Context) error
}

func (d *driver) hold(o operation, c *clientv3.Client, make func(*concurrency.Session) (take func() error, h hold)) error {
	session, err := concurrency.NewSession(c, concurrency.WithTTL(30))
	if err != nil {
		return err
	}
	take, h := make(session)
	h.session, h.held = session, make1()
	go func() { h.held <- take() }()
	d.holds[o.arg(0)] = &h
	return nil
}

func make1() chan error { return make(chan error, 1) }

var _ = handle(map[string]handler{
	// lock NAME PREFIX: asks for it and does not wait.
	"lock": func(d *driver, _ context.Context, c *clientv3.Client, o operation) (answer, error) {
		return answer{}, d.hold(o, c, func(s *concurrency.Session) (func() error, hold) {
			m := concurrency.NewMutex(s, o.arg(1))
			return func() error { return m.Lock(s.Client().Ctx()) }, hold{key: m.Key, end: m.Unlock}
		})
	},
	// elect NAME PREFIX VALUE: stands for it and does not wait.
	"elect": func(d *driver, _ context.Context, c *clientv3.Client, o operation) (answer, error) {
		return answer{}, d.hold(o, c, func(s *concurrency.Session) (func() error, hold) {
			e := concurrency.NewElection(s, o.arg(1))
			return func() error { return e.Campaign(s.Client().Ctx(), o.arg(2)) }, hold{key: e.Key, end: e.Resign}
		})
	},
	// held NAME: waits until it is.
	"held": func(d *driver, ctx context.Context, _ *clientv3.Client, o operation) (answer, error) {
		h := d.holds[o.arg(0)]
		select {
		case err := <-h.held:
			return answer{ID: h.key()}, err
		case <-ctx.Done():
			return answer{}, ctx.Err()
		}
	},
	// release NAME: gives it up.
	"release": func(d *driver, ctx context.Context, _ *clientv3.Client, o operation) (answer, error) {
		h := d.holds[o.arg(0)]
		delete(d.holds, o.arg(0))
		return answer{}, errors.Join(h.end(ctx), h.session.Close())
	},
	// leader PREFIX: who was elected.
	"leader": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		session, err := concurrency.NewSession(c)
		if err != nil {
			return answer{}, err
		}
		defer session.Close()
		r, err := concurrency.NewElection(session, o.arg(0)).Leader(ctx)
		if err != nil {
			return answer{}, err
		}
		return answer{Lines: []string{string(r.Kvs[0].Value)}}, nil
	},
	// go NAME: what only this client has; see helpers.go.
	"go": func(d *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		helper := helpers[o.arg(0)]
		if helper == nil {
			return answer{}, fmt.Errorf("no helper %q", o.arg(0))
		}
		lines, err := helper(ctx, d.config, c)
		return answer{Lines: lines}, err
	},
})
