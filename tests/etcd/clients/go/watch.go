package main

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// An open watch: its answers, and how to end it.
type watch struct {
	answers clientv3.WatchChan
	cancel  context.CancelFunc
	client  *clientv3.Client
	ctx     context.Context
	waiting []event
}

var _ = handle(map[string]handler{
	// watch NAME KEY [END]: opens it and waits until the server has it.
	"watch": func(d *driver, _ context.Context, _ *clientv3.Client, o operation) (answer, error) {
		// Of its own, so that its stream ends with it.
		config := d.config
		c, err := clientv3.New(config)
		if err != nil {
			return answer{}, err
		}
		inner := operation{Args: o.Args[1:], Flags: o.Flags}
		options := append(spanOptions(inner), clientv3.WithCreatedNotify())
		for flag, option := range map[string]clientv3.OpOption{
			"prev-kv": clientv3.WithPrevKV(), "fragment": clientv3.WithFragment(),
			"progress-notify": clientv3.WithProgressNotify(),
			"no-put":          clientv3.WithFilterPut(), "no-delete": clientv3.WithFilterDelete(),
		} {
			if o.has(flag) {
				options = append(options, option)
			}
		}
		if o.has("rev") {
			options = append(options, clientv3.WithRev(o.number("rev")))
		}
		ctx, cancel := context.WithCancel(context.Background())
		w := &watch{c.Watch(ctx, o.arg(1), options...), cancel, c, ctx, nil}
		d.watches[o.arg(0)] = w
		first, ok := <-w.answers
		if !ok {
			return answer{}, errors.New("the watch is closed")
		}
		return answer{}, first.Err()
	},
	// events NAME N: waits for so many.
	"events": func(d *driver, ctx context.Context, _ *clientv3.Client, o operation) (answer, error) {
		w, wanted := d.watches[o.arg(0)], int(number(o.arg(1)))
		for len(w.waiting) < wanted {
			r, err := w.next(ctx)
			if err != nil {
				return answer{Events: w.waiting}, err
			}
			for _, e := range r.Events {
				one := event{Delete: e.Type == clientv3.EventTypeDelete, Record: toRecord(e.Kv)}
				if e.PrevKv != nil {
					prev := toRecord(e.PrevKv)
					one.Prev = &prev
				}
				w.waiting = append(w.waiting, one)
			}
		}
		shown := w.waiting
		w.waiting = nil
		return answer{Events: shown}, nil
	},
	// progress NAME: asks for progress and waits for the answer.
	"progress": func(d *driver, ctx context.Context, _ *clientv3.Client, o operation) (answer, error) {
		w := d.watches[o.arg(0)]
		if err := w.client.RequestProgress(w.ctx); err != nil {
			return answer{}, err
		}
		for {
			r, err := w.next(ctx)
			if err != nil {
				return answer{}, err
			}
			if r.IsProgressNotify() {
				return answer{Revision: r.Header.Revision}, nil
			}
		}
	},
	// ended NAME: waits until the server ends it.
	"ended": func(d *driver, ctx context.Context, _ *clientv3.Client, o operation) (answer, error) {
		w := d.watches[o.arg(0)]
		delete(d.watches, o.arg(0))
		defer w.client.Close()
		for {
			if r, err := w.next(ctx); err != nil {
				return answer{Revision: r.CompactRevision}, err
			}
		}
	},
	// cancel NAME: ends it; nothing more may have come.
	"cancel": func(d *driver, ctx context.Context, _ *clientv3.Client, o operation) (answer, error) {
		w := d.watches[o.arg(0)]
		delete(d.watches, o.arg(0))
		defer w.client.Close()
		w.cancel()
		for {
			select {
			case r, ok := <-w.answers:
				if !ok {
					return answer{}, nil
				}
				if len(r.Events) > 0 {
					return answer{}, fmt.Errorf("more events: %v", r.Events)
				}
			case <-ctx.Done():
				return answer{}, ctx.Err()
			}
		}
	},
})

func (w *watch) next(ctx context.Context) (clientv3.WatchResponse, error) {
	select {
	case r, ok := <-w.answers:
		if !ok {
			return r, errors.New("the watch is closed")
		}
		return r, r.Err()
	case <-ctx.Done():
		return clientv3.WatchResponse{}, ctx.Err()
	}
}
