package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A call of the auth service by user or role name and one more argument; its answer has no content.
func plain[R any](call func(*clientv3.Client, context.Context, operation) (R, error)) handler {
	return func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		_, err := call(c, ctx, o)
		return answer{}, err
	}
}

var permissions = map[string]clientv3.PermissionType{
	"read":  clientv3.PermissionType(clientv3.PermRead),
	"write": clientv3.PermissionType(clientv3.PermWrite), "readwrite": clientv3.PermissionType(clientv3.PermReadWrite),
}

var _ = handle(map[string]handler{
	"auth-enable": plain(func(c *clientv3.Client, ctx context.Context, _ operation) (*clientv3.AuthEnableResponse, error) {
		return c.AuthEnable(ctx)
	}),
	"auth-disable": plain(func(c *clientv3.Client, ctx context.Context, _ operation) (*clientv3.AuthDisableResponse, error) {
		return c.AuthDisable(ctx)
	}),
	"user-add": plain(func(c *clientv3.Client, ctx context.Context, o operation) (*clientv3.AuthUserAddResponse, error) {
		name, password, _ := strings.Cut(o.arg(0), ":")
		return c.UserAddWithOptions(ctx, name, password, &clientv3.UserAddOptions{NoPassword: o.has("no-password")})
	}),
	"user-delete": plain(func(c *clientv3.Client, ctx context.Context, o operation) (*clientv3.AuthUserDeleteResponse, error) {
		return c.UserDelete(ctx, o.arg(0))
	}),
	"user-passwd": plain(func(c *clientv3.Client, ctx context.Context, o operation) (*clientv3.AuthUserChangePasswordResponse, error) {
		return c.UserChangePassword(ctx, o.arg(0), o.arg(1))
	}),
	"user-grant-role": plain(func(c *clientv3.Client, ctx context.Context, o operation) (*clientv3.AuthUserGrantRoleResponse, error) {
		return c.UserGrantRole(ctx, o.arg(0), o.arg(1))
	}),
	"user-revoke-role": plain(func(c *clientv3.Client, ctx context.Context, o operation) (*clientv3.AuthUserRevokeRoleResponse, error) {
		return c.UserRevokeRole(ctx, o.arg(0), o.arg(1))
	}),
	"role-add": plain(func(c *clientv3.Client, ctx context.Context, o operation) (*clientv3.AuthRoleAddResponse, error) {
		return c.RoleAdd(ctx, o.arg(0))
	}),
	"role-delete": plain(func(c *clientv3.Client, ctx context.Context, o operation) (*clientv3.AuthRoleDeleteResponse, error) {
		return c.RoleDelete(ctx, o.arg(0))
	}),
	"role-grant-permission": plain(func(c *clientv3.Client, ctx context.Context, o operation) (*clientv3.AuthRoleGrantPermissionResponse, error) {
		return c.RoleGrantPermission(ctx, o.arg(0), o.arg(2), end(o, 2, 3), permissions[o.arg(1)])
	}),
	"role-revoke-permission": plain(func(c *clientv3.Client, ctx context.Context, o operation) (*clientv3.AuthRoleRevokePermissionResponse, error) {
		return c.RoleRevokePermission(ctx, o.arg(0), o.arg(1), end(o, 1, 2))
	}),
	"auth-status": func(_ *driver, ctx context.Context, c *clientv3.Client, _ operation) (answer, error) {
		r, err := c.AuthStatus(ctx)
		if err != nil {
			return answer{}, err
		}
		return answer{Succeeded: &r.Enabled}, nil
	},
	"user-get": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		r, err := c.UserGet(ctx, o.arg(0))
		if err != nil {
			return answer{}, err
		}
		return answer{Lines: r.Roles}, nil
	},
	"user-list": func(_ *driver, ctx context.Context, c *clientv3.Client, _ operation) (answer, error) {
		r, err := c.UserList(ctx)
		if err != nil {
			return answer{}, err
		}
		return answer{Lines: r.Users}, nil
	},
	"role-get": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		r, err := c.RoleGet(ctx, o.arg(0))
		if err != nil {
			return answer{}, err
		}
		var a answer
		for _, p := range r.Perm {
			line := strings.ToLower(p.PermType.String()) + " " + string(p.Key)
			if len(p.RangeEnd) > 0 {
				line += " " + strings.ReplaceAll(string(p.RangeEnd), "\x00", "\\0")
			}
			a.Lines = append(a.Lines, line)
		}
		return a, nil
	},
	"role-list": func(_ *driver, ctx context.Context, c *clientv3.Client, _ operation) (answer, error) {
		r, err := c.RoleList(ctx)
		if err != nil {
			return answer{}, err
		}
		return answer{Lines: r.Roles}, nil
	},
	// Lines are "id name learner".
	"member-list": func(_ *driver, ctx context.Context, c *clientv3.Client, _ operation) (answer, error) {
		r, err := c.MemberList(ctx)
		if err != nil {
			return answer{}, err
		}
		return members(r.Members), nil
	},
	"member-add": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		add := c.MemberAdd
		if o.has("learner") {
			add = c.MemberAddAsLearner
		}
		r, err := add(ctx, []string{o.Flags["peer-urls"]})
		if err != nil {
			return answer{}, err
		}
		return answer{ID: strconv.FormatUint(r.Member.ID, 10)}, nil
	},
	"member-remove": plain(func(c *clientv3.Client, ctx context.Context, o operation) (*clientv3.MemberRemoveResponse, error) {
		return c.MemberRemove(ctx, member(o.arg(0)))
	}),
	"member-promote": plain(func(c *clientv3.Client, ctx context.Context, o operation) (*clientv3.MemberPromoteResponse, error) {
		return c.MemberPromote(ctx, member(o.arg(0)))
	}),
	"member-update": plain(func(c *clientv3.Client, ctx context.Context, o operation) (*clientv3.MemberUpdateResponse, error) {
		return c.MemberUpdate(ctx, member(o.arg(0)), []string{o.Flags["peer-urls"]})
	}),
	"defrag": func(_ *driver, ctx context.Context, c *clientv3.Client, _ operation) (answer, error) {
		for _, endpoint := range c.Endpoints() {
			if _, err := c.Defragment(ctx, endpoint); err != nil {
				return answer{}, err
			}
		}
		return answer{}, nil
	},
	"alarm-list": func(_ *driver, ctx context.Context, c *clientv3.Client, _ operation) (answer, error) {
		r, err := c.AlarmList(ctx)
		if err != nil {
			return answer{}, err
		}
		var a answer
		for _, alarm := range r.Alarms {
			a.Lines = append(a.Lines, alarm.Alarm.String())
		}
		return a, nil
	},
	// Lines are "member leader" of each endpoint; what every status must hold is checked here.
	"endpoint-status": func(_ *driver, ctx context.Context, c *clientv3.Client, _ operation) (answer, error) {
		var a answer
		for _, endpoint := range c.Endpoints() {
			r, err := c.Status(ctx, endpoint)
			if err != nil {
				return a, err
			}
			if r.Version == "" || r.DbSize < r.DbSizeInUse || r.DbSizeInUse <= 0 || r.RaftIndex < r.RaftAppliedIndex ||
				r.RaftTerm == 0 || len(r.Errors) > 0 || r.IsLearner {
				return a, fmt.Errorf("status of %s: %v", endpoint, r)
			}
			a.Lines = append(a.Lines, fmt.Sprintf("%d %d", r.Header.MemberId, r.Leader))
		}
		return a, nil
	},
	// Lines are the hash of each endpoint at a revision.
	"endpoint-hashkv": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		var a answer
		for _, endpoint := range c.Endpoints() {
			r, err := c.HashKV(ctx, endpoint, o.number("rev"))
			if err != nil {
				return a, err
			}
			a.Lines = append(a.Lines, strconv.FormatUint(uint64(r.Hash), 10))
		}
		return a, nil
	},
	"snapshot-save": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		r, err := c.Snapshot(ctx)
		if err != nil {
			return answer{}, err
		}
		defer r.Close()
		f, err := os.Create(o.arg(0))
		if err != nil {
			return answer{}, err
		}
		_, err = io.Copy(f, r)
		return answer{}, errors.Join(err, f.Close())
	},
	"move-leader": func(_ *driver, ctx context.Context, c *clientv3.Client, o operation) (answer, error) {
		for _, endpoint := range c.Endpoints() {
			r, err := c.Status(ctx, endpoint)
			if err != nil {
				return answer{}, err
			}
			if r.Header.MemberId == r.Leader {
				_, err = onlyAt(c, endpoint, func(c *clientv3.Client) (*clientv3.MoveLeaderResponse, error) {
					return c.MoveLeader(ctx, member(o.arg(0)))
				})
				return answer{}, err
			}
		}
		return answer{}, errors.New("no leader")
	},
})

func onlyAt[R any](c *clientv3.Client, endpoint string, call func(*clientv3.Client) (R, error)) (R, error) {
	all := c.Endpoints()
	c.SetEndpoints(endpoint)
	defer c.SetEndpoints(all...)
	return call(c)
}

func member(text string) uint64 {
	id, _ := strconv.ParseUint(text, 10, 64)
	return id
}

// The end of a range, from the flags or the argument at `i` of an operation whose key is the argument at `key`.
func end(o operation, key, i int) string {
	switch {
	case o.has("prefix"):
		return clientv3.GetPrefixRangeEnd(o.arg(key))
	case o.has("from-key"):
		return "\x00"
	default:
		return o.arg(i)
	}
}

func members(list []*etcdserverpb.Member) (a answer) {
	for _, m := range list {
		a.Lines = append(a.Lines, fmt.Sprintf("%d %s %t", m.ID, m.Name, m.IsLearner))
	}
	slices.Sort(a.Lines)
	return a
}
