package main

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var _ = handle(map[string]handler{
	"put": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		r, err := c.Put(ctx, o.arg(0), o.arg(1), putOptions(o)...)
		if err != nil {
			return answer{}, err
		}
		return putAnswer((*etcdserverpb.PutResponse)(r)), nil
	},
	"get": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		r, err := c.Get(ctx, o.arg(0), getOptions(o)...)
		if err != nil {
			return answer{}, err
		}
		return getAnswer((*etcdserverpb.RangeResponse)(r)), nil
	},
	"del": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		r, err := c.Delete(ctx, o.arg(0), delOptions(o)...)
		if err != nil {
			return answer{}, err
		}
		return delAnswer((*etcdserverpb.DeleteRangeResponse)(r)), nil
	},
	"txn": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		r, err := c.Txn(ctx).If(compares(o)...).Then(operations(o.Then)...).Else(operations(o.Else)...).Commit()
		if err != nil {
			return answer{}, err
		}
		return txnAnswer((*etcdserverpb.TxnResponse)(r)), nil
	},
	"compact": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		var options []clientv3.CompactOption
		if o.has("physical") {
			options = append(options, clientv3.WithCompactPhysical())
		}
		r, err := c.Compact(ctx, number(o.arg(0)), options...)
		if err != nil {
			return answer{}, err
		}
		return answer{Revision: at(r.Header)}, nil
	},
})

func putOptions(o operation) (options []clientv3.OpOption) {
	if o.has("lease") {
		options = append(options, clientv3.WithLease(clientv3.LeaseID(o.number("lease"))))
	}
	if o.has("prev-kv") {
		options = append(options, clientv3.WithPrevKV())
	}
	if o.has("ignore-value") {
		options = append(options, clientv3.WithIgnoreValue())
	}
	if o.has("ignore-lease") {
		options = append(options, clientv3.WithIgnoreLease())
	}
	return options
}

// Of keys: a second argument is the end of a range.
func spanOptions(o operation) (options []clientv3.OpOption) {
	switch {
	case o.has("prefix"):
		options = append(options, clientv3.WithPrefix())
	case o.has("from-key"):
		options = append(options, clientv3.WithFromKey())
	case len(o.Args) > 1:
		options = append(options, clientv3.WithRange(o.Args[1]))
	}
	return options
}

var targets = map[string]clientv3.SortTarget{
	"KEY": clientv3.SortByKey, "VERSION": clientv3.SortByVersion, "CREATE": clientv3.SortByCreateRevision,
	"MODIFY": clientv3.SortByModRevision, "VALUE": clientv3.SortByValue,
}

var orders = map[string]clientv3.SortOrder{"ASCEND": clientv3.SortAscend, "DESCEND": clientv3.SortDescend}

func getOptions(o operation) []clientv3.OpOption {
	options := spanOptions(o)
	for flag, option := range map[string]func(int64) clientv3.OpOption{
		"rev": clientv3.WithRev, "limit": clientv3.WithLimit,
		"min-mod-rev": clientv3.WithMinModRev, "max-mod-rev": clientv3.WithMaxModRev,
		"min-create-rev": clientv3.WithMinCreateRev, "max-create-rev": clientv3.WithMaxCreateRev,
	} {
		if o.has(flag) {
			options = append(options, option(o.number(flag)))
		}
	}
	if o.has("sort-by") || o.has("order") {
		options = append(options, clientv3.WithSort(targets[o.Flags["sort-by"]], orders[o.Flags["order"]]))
	}
	if o.has("keys-only") {
		options = append(options, clientv3.WithKeysOnly())
	}
	if o.has("count-only") {
		options = append(options, clientv3.WithCountOnly())
	}
	if o.Flags["consistency"] == "s" {
		options = append(options, clientv3.WithSerializable())
	}
	return options
}

func delOptions(o operation) []clientv3.OpOption {
	options := spanOptions(o)
	if o.has("prev-kv") {
		options = append(options, clientv3.WithPrevKV())
	}
	return options
}

func compares(o operation) (all []clientv3.Cmp) {
	for _, c := range o.If {
		var cmp clientv3.Cmp
		switch c.Target {
		case "version":
			cmp = clientv3.Compare(clientv3.Version(c.Key), c.Result, number(c.Value))
		case "create":
			cmp = clientv3.Compare(clientv3.CreateRevision(c.Key), c.Result, number(c.Value))
		case "mod":
			cmp = clientv3.Compare(clientv3.ModRevision(c.Key), c.Result, number(c.Value))
		case "lease":
			cmp = clientv3.Compare(clientv3.LeaseValue(c.Key), c.Result, clientv3.LeaseID(number(c.Value)))
		default:
			cmp = clientv3.Compare(clientv3.Value(c.Key), c.Result, c.Value)
		}
		if c.Prefix {
			cmp = cmp.WithPrefix()
		}
		all = append(all, cmp)
	}
	return all
}

func operations(list []operation) (all []clientv3.Op) {
	for _, o := range list {
		switch o.Name {
		case "put":
			all = append(all, clientv3.OpPut(o.arg(0), o.arg(1), putOptions(o)...))
		case "get":
			all = append(all, clientv3.OpGet(o.arg(0), getOptions(o)...))
		case "del":
			all = append(all, clientv3.OpDelete(o.arg(0), delOptions(o)...))
		case "txn":
			all = append(all, clientv3.OpTxn(compares(o), operations(o.Then), operations(o.Else)))
		default:
			panic(fmt.Sprintf("not within a transaction: %s", o.Name))
		}
	}
	return all
}

func putAnswer(r *etcdserverpb.PutResponse) answer {
	a := answer{Revision: at(r.Header)}
	if r.PrevKv != nil {
		a.Prev = []record{toRecord(r.PrevKv)}
	}
	return a
}

func getAnswer(r *etcdserverpb.RangeResponse) answer {
	return answer{Revision: at(r.Header), Count: &r.Count, More: r.More, Records: toRecords(r.Kvs)}
}

func delAnswer(r *etcdserverpb.DeleteRangeResponse) answer {
	return answer{Revision: at(r.Header), Deleted: &r.Deleted, Prev: toRecords(r.PrevKvs)}
}

func txnAnswer(r *etcdserverpb.TxnResponse) answer {
	a := answer{Revision: at(r.Header), Succeeded: &r.Succeeded}
	for _, inner := range r.Responses {
		var one answer
		switch {
		case inner.GetResponsePut() != nil:
			one = putAnswer(inner.GetResponsePut())
		case inner.GetResponseRange() != nil:
			one = getAnswer(inner.GetResponseRange())
		case inner.GetResponseDeleteRange() != nil:
			one = delAnswer(inner.GetResponseDeleteRange())
		default:
			one = txnAnswer(inner.GetResponseTxn())
		}
		one.Revision = 0
		a.Responses = append(a.Responses, one)
	}
	return a
}
