package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"
)

// What stands above the calls in this client's own packages. A helper answers lines that any server must bring about.
var helpers = map[string]func(context.Context, clientv3.Config, *clientv3.Client) ([]string, error){
	"stm": stm, "namespace": withinNamespace, "ordering": ordered, "leasing": leased, "kubernetes": asKubernetes,
	"session": sessions, "observe": observe, "mirror": mirrored, "errors": kinds, "busy-mutex": busyMutex,
	"require-leader": require,
}

// Money moves between accounts by concurrent software transactions of every isolation that forbids lost updates.
func stm(ctx context.Context, _ clientv3.Config, c *clientv3.Client) ([]string, error) {
	for _, account := range []string{"a", "b", "c"} {
		if _, err := c.Put(ctx, "stm/"+account, "100"); err != nil {
			return nil, err
		}
	}
	var wait sync.WaitGroup
	failures := make(chan error, 64)
	for worker := range 4 {
		isolation := []concurrency.Isolation{
			concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads,
		}[worker%3]
		wait.Go(func() {
			for i := range 8 {
				from, to := "stm/"+string("abc"[(worker+i)%3]), "stm/"+string("abc"[(worker+i+1)%3])
				transfer := func(s concurrency.STM) error {
					// Reads are serializable: a follower may not have the accounts yet, and then the commit fails.
					var x, y int
					fmt.Sscan(s.Get(from), &x)
					fmt.Sscan(s.Get(to), &y)
					s.Put(from, fmt.Sprint(x-1))
					s.Put(to, fmt.Sprint(y+1))
					return nil
				}
				for {
					_, err := concurrency.NewSTM(c, transfer,
						concurrency.WithIsolation(isolation), concurrency.WithAbortContext(ctx))
					if err == nil {
						break
					}
					// Its later reads are serializable at the first one's revision, which a follower may not have yet.
					if !errors.Is(err, rpctypes.ErrFutureRev) {
						failures <- err
						return
					}
				}
			}
		})
	}
	wait.Wait()
	select {
	case err := <-failures:
		return nil, err
	default:
	}
	r, err := c.Get(ctx, "stm/", clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	sum, versions := 0, int64(0)
	for _, kv := range r.Kvs {
		var x int
		fmt.Sscan(string(kv.Value), &x)
		sum, versions = sum+x, versions+kv.Version
	}
	// 32 transfers write two accounts each.
	return []string{fmt.Sprintf("sum %d, writes %d", sum, versions)}, nil
}

func withinNamespace(ctx context.Context, _ clientv3.Config, c *clientv3.Client) ([]string, error) {
	kv, watcher := namespace.NewKV(c.KV, "ns/"), namespace.NewWatcher(c.Watcher, "ns/")
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := watcher.Watch(inner, "k", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-watch
	if _, err := kv.Put(ctx, "k", "v"); err != nil {
		return nil, err
	}
	event := (<-watch).Events[0]
	outside, err := c.Get(ctx, "ns/k")
	if err != nil {
		return nil, err
	}
	inside, err := kv.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	txn, err := kv.Txn(ctx).If(clientv3.Compare(clientv3.Value("k"), "=", "v")).Then(clientv3.OpDelete("k")).Commit()
	if err != nil {
		return nil, err
	}
	return []string{
		fmt.Sprintf("outside %s, inside %s, watched %s", outside.Kvs[0].Key, inside.Kvs[0].Key, event.Kv.Key),
		fmt.Sprintf("deleted %d", txn.Responses[0].GetResponseDeleteRange().Deleted),
	}, nil
}

// Serializable reads that never go back in time.
func ordered(ctx context.Context, _ clientv3.Config, c *clientv3.Client) ([]string, error) {
	kv := ordering.NewKV(c.KV, ordering.NewOrderViolationSwitchEndpointClosure(c))
	for i := range 20 {
		value := fmt.Sprint(i)
		if _, err := c.Put(ctx, "ordered", value); err != nil {
			return nil, err
		}
		if _, err := kv.Get(ctx, "ordered"); err != nil {
			return nil, err
		}
		r, err := kv.Get(ctx, "ordered", clientv3.WithSerializable())
		if err != nil {
			return nil, err
		}
		if got := string(r.Kvs[0].Value); got != value {
			return nil, fmt.Errorf("read %s after %s", got, value)
		}
	}
	return []string{"20 reads in order"}, nil
}

// Two clients that own keys by leases: a write by one takes the key from the other's cache.
func leased(_ context.Context, config clientv3.Config, c *clientv3.Client) ([]string, error) {
	other, err := clientv3.New(config)
	if err != nil {
		return nil, err
	}
	defer other.Close()
	a, closeA, err := leasing.NewKV(c, "leases/")
	if err != nil {
		return nil, err
	}
	defer closeA()
	b, closeB, err := leasing.NewKV(other, "leases/")
	if err != nil {
		return nil, err
	}
	defer closeB()
	ctx := context.Background()
	var lines []string
	for i, write := range []clientv3.KV{a, b, a} {
		if _, err := write.Put(ctx, "leased", fmt.Sprint(i)); err != nil {
			return nil, err
		}
		for _, read := range []clientv3.KV{a, b, a} {
			r, err := read.Get(ctx, "leased")
			if err != nil {
				return nil, err
			}
			lines = append(lines, string(r.Kvs[0].Value))
		}
	}
	txn, err := b.Txn(ctx).If(clientv3.Compare(clientv3.Value("leased"), "=", "2")).Then(clientv3.OpDelete("leased")).Commit()
	if err != nil {
		return nil, err
	}
	r, err := a.Get(ctx, "leased")
	if err != nil {
		return nil, err
	}
	return []string{fmt.Sprint(lines), fmt.Sprintf("deleted %t, left %d", txn.Succeeded, len(r.Kvs))}, nil
}

// The client interface that kube-apiserver uses.
func asKubernetes(ctx context.Context, config clientv3.Config, _ *clientv3.Client) ([]string, error) {
	c, err := kubernetes.New(config)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	k := c.Kubernetes
	created, err := k.OptimisticPut(ctx, "/registry/pods/a/1", []byte("one"), 0, kubernetes.PutOptions{})
	if err != nil {
		return nil, err
	}
	again, err := k.OptimisticPut(ctx, "/registry/pods/a/1", []byte("two"), 0, kubernetes.PutOptions{GetOnFailure: true})
	if err != nil {
		return nil, err
	}
	lease, err := c.Grant(ctx, 60)
	if err != nil {
		return nil, err
	}
	updated, err := k.OptimisticPut(ctx, "/registry/pods/a/1", []byte("two"), created.Revision, kubernetes.PutOptions{LeaseID: lease.ID})
	if err != nil {
		return nil, err
	}
	for i := 2; i <= 5; i++ {
		if _, err := k.OptimisticPut(ctx, fmt.Sprintf("/registry/pods/a/%d", i), []byte("x"), 0, kubernetes.PutOptions{}); err != nil {
			return nil, err
		}
	}
	page, err := k.List(ctx, "/registry/pods/", kubernetes.ListOptions{Limit: 2})
	if err != nil {
		return nil, err
	}
	rest, err := k.List(ctx, "/registry/pods/", kubernetes.ListOptions{
		Limit: 10, Revision: page.Revision, Continue: string(page.Kvs[1].Key) + "\x00",
	})
	if err != nil {
		return nil, err
	}
	old, err := k.Get(ctx, "/registry/pods/a/1", kubernetes.GetOptions{Revision: created.Revision})
	if err != nil {
		return nil, err
	}
	count, err := k.Count(ctx, "/registry/pods/", kubernetes.CountOptions{})
	if err != nil {
		return nil, err
	}
	refused, err := k.OptimisticDelete(ctx, "/registry/pods/a/1", created.Revision, kubernetes.DeleteOptions{GetOnFailure: true})
	if err != nil {
		return nil, err
	}
	deleted, err := k.OptimisticDelete(ctx, "/registry/pods/a/1", updated.Revision, kubernetes.DeleteOptions{})
	if err != nil {
		return nil, err
	}
	return []string{
		fmt.Sprintf("created %t, again %t with %s, updated %t", created.Succeeded, again.Succeeded, again.KV.Value, updated.Succeeded),
		fmt.Sprintf("page of %d of %d, rest %d of %d", len(page.Kvs), page.Count, len(rest.Kvs), rest.Count),
		fmt.Sprintf("old %s, count %d", old.KV.Value, count),
		fmt.Sprintf("refused %t with %s, deleted %t", !refused.Succeeded, refused.KV.Value, deleted.Succeeded),
	}, nil
}

// A session that is closed takes its keys along; an orphaned one leaves them to the lease.
func sessions(ctx context.Context, _ clientv3.Config, c *clientv3.Client) ([]string, error) {
	session, err := concurrency.NewSession(c, concurrency.WithTTL(60))
	if err != nil {
		return nil, err
	}
	if _, err := c.Put(ctx, "of-session", "v", clientv3.WithLease(session.Lease())); err != nil {
		return nil, err
	}
	before, err := c.Get(ctx, "of-session")
	if err != nil {
		return nil, err
	}
	if err := session.Close(); err != nil {
		return nil, err
	}
	<-session.Done()
	after, err := c.Get(ctx, "of-session")
	if err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("open %d, closed %d", before.Count, after.Count)}, nil
}

// Two candidates one after another, as an observer sees them.
func observe(ctx context.Context, _ clientv3.Config, c *clientv3.Client) ([]string, error) {
	var elections []*concurrency.Election
	for range 2 {
		session, err := concurrency.NewSession(c)
		if err != nil {
			return nil, err
		}
		defer session.Close()
		elections = append(elections, concurrency.NewElection(session, "observed"))
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	var lines []string
	if err := elections[0].Campaign(ctx, "first"); err != nil {
		return nil, err
	}
	seen := elections[1].Observe(inner)
	lines = append(lines, string((<-seen).Kvs[0].Value))
	if err := elections[0].Proclaim(ctx, "still first"); err != nil {
		return nil, err
	}
	lines = append(lines, string((<-seen).Kvs[0].Value))
	if err := elections[0].Resign(ctx); err != nil {
		return nil, err
	}
	_, err := elections[1].Leader(ctx)
	lines = append(lines, fmt.Sprint(errors.Is(err, concurrency.ErrElectionNoLeader)))
	if err := elections[1].Campaign(ctx, "second"); err != nil {
		return nil, err
	}
	return append(lines, string((<-seen).Kvs[0].Value)), nil
}

// Everything there is and everything that comes, as make-mirror takes it.
func mirrored(ctx context.Context, _ clientv3.Config, c *clientv3.Client) ([]string, error) {
	for i := range 25 {
		if _, err := c.Put(ctx, fmt.Sprintf("mirrored/%02d", i), "v"); err != nil {
			return nil, err
		}
	}
	syncer := mirror.NewSyncer(c, "mirrored/", 0)
	pages, failures := syncer.SyncBase(ctx)
	base := 0
	for page := range pages {
		base += len(page.Kvs)
	}
	if err := <-failures; err != nil {
		return nil, err
	}
	if _, err := c.Delete(ctx, "mirrored/00"); err != nil {
		return nil, err
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	update := <-syncer.SyncUpdates(inner)
	return []string{fmt.Sprintf("base %d, then %s %s", base, update.Events[0].Type, update.Events[0].Kv.Key)}, nil
}

// Errors are the client's own values, by which programs tell them apart.
func kinds(ctx context.Context, config clientv3.Config, c *clientv3.Client) ([]string, error) {
	var lines []string
	expect := func(want error, err error) {
		lines = append(lines, fmt.Sprintf("%t %v", errors.Is(err, want), want))
	}
	_, err := c.Put(ctx, "", "v")
	expect(rpctypes.ErrEmptyKey, err)
	_, err = c.Put(ctx, "k", "v", clientv3.WithLease(12345))
	expect(rpctypes.ErrLeaseNotFound, err)
	_, err = c.Get(ctx, "k", clientv3.WithRev(1<<40))
	expect(rpctypes.ErrFutureRev, err)
	_, err = c.Revoke(ctx, 12345)
	expect(rpctypes.ErrLeaseNotFound, err)
	_, err = c.KeepAliveOnce(ctx, 12345)
	expect(rpctypes.ErrLeaseNotFound, err)
	_, err = c.Grant(ctx, 9_000_000_001)
	expect(rpctypes.ErrLeaseTTLTooLarge, err)
	_, err = c.Txn(ctx).Then(clientv3.OpPut("k", "1"), clientv3.OpPut("k", "2")).Commit()
	expect(rpctypes.ErrDuplicateKey, err)
	var many []clientv3.Op
	for i := range 129 {
		many = append(many, clientv3.OpPut(fmt.Sprint("k", i), ""))
	}
	_, err = c.Txn(ctx).Then(many...).Commit()
	expect(rpctypes.ErrTooManyOps, err)
	_, err = c.Put(ctx, "k", string(make([]byte, 1600*1024)))
	expect(rpctypes.ErrRequestTooLarge, err)
	_, err = c.MemberRemove(ctx, 1)
	expect(rpctypes.ErrMemberNotFound, err)
	_, err = c.AuthEnable(ctx)
	expect(rpctypes.ErrRootUserNotExist, err)
	_, err = c.UserGet(ctx, "nobody")
	expect(rpctypes.ErrUserNotFound, err)
	_, err = c.RoleGet(ctx, "none")
	expect(rpctypes.ErrRoleNotFound, err)
	config.Username, config.Password = "u", "p"
	named, err := clientv3.New(config)
	if err == nil {
		named.Close()
	}
	lines = append(lines, fmt.Sprintf("a user while there is no auth: %v", err))
	return lines, nil
}

// A mutex under contention: what it guards is never held twice.
func busyMutex(ctx context.Context, _ clientv3.Config, c *clientv3.Client) ([]string, error) {
	var wait sync.WaitGroup
	failures := make(chan error, 16)
	inside, most, turns := 0, 0, 0
	var guard sync.Mutex
	count := func(by int) {
		guard.Lock()
		defer guard.Unlock()
		inside += by
		most = max(most, inside)
		turns += max(by, 0)
	}
	for range 4 {
		wait.Go(func() {
			session, err := concurrency.NewSession(c)
			if err != nil {
				failures <- err
				return
			}
			defer session.Close()
			mutex := concurrency.NewMutex(session, "busy")
			for range 4 {
				if err := mutex.Lock(ctx); err != nil {
					failures <- err
					return
				}
				count(1)
				count(-1)
				if err := mutex.Unlock(ctx); err != nil {
					failures <- err
					return
				}
			}
		})
	}
	wait.Wait()
	select {
	case err := <-failures:
		return nil, err
	default:
		return []string{fmt.Sprintf("%d turns, at most %d inside", turns, most)}, nil
	}
}

// A call that demands a leader works while there is one.
func require(ctx context.Context, _ clientv3.Config, c *clientv3.Client) ([]string, error) {
	_, err := c.Get(clientv3.WithRequireLeader(ctx), "k")
	return []string{fmt.Sprint(err)}, nil
}
