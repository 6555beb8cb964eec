package main

import (
	"context"
	"slices"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func lease(o operation) clientv3.LeaseID { return clientv3.LeaseID(number(o.arg(0))) }

var _ = handle(map[string]handler{
	"lease-grant": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		r, err := c.Grant(ctx, number(o.arg(0)))
		if err != nil {
			return answer{}, err
		}
		return answer{ID: strconv.FormatInt(int64(r.ID), 10), Number: r.TTL}, nil
	},
	"lease-revoke": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		r, err := c.Revoke(ctx, lease(o))
		if err != nil {
			return answer{}, err
		}
		return answer{Revision: at(r.Header)}, nil
	},
	"lease-keep-alive": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		r, err := c.KeepAliveOnce(ctx, lease(o))
		if err != nil {
			return answer{}, err
		}
		return answer{Number: r.TTL}, nil
	},
	"lease-timetolive": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		var options []clientv3.LeaseOption
		if o.has("keys") {
			options = append(options, clientv3.WithAttachedKeys())
		}
		r, err := c.TimeToLive(ctx, lease(o), options...)
		if err != nil {
			return answer{}, err
		}
		a := answer{Number: r.GrantedTTL}
		if r.TTL > r.GrantedTTL || r.TTL < 0 {
			a.Number = r.TTL
		}
		for _, key := range r.Keys {
			a.Lines = append(a.Lines, string(key))
		}
		slices.Sort(a.Lines)
		return a, nil
	},
	// Its lines are ids.
	"lease-list": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		r, err := c.Leases(ctx)
		if err != nil {
			return answer{}, err
		}
		var a answer
		for _, l := range r.Leases {
			a.Lines = append(a.Lines, strconv.FormatInt(int64(l.ID), 10))
		}
		slices.Sort(a.Lines)
		return a, nil
	},
})
