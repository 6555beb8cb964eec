#!/usr/bin/env python3
"""Writes rbac.txt, the table of roles and bindings that every cluster starts with.

usage: make_rbac.py DIR > rbac.txt     (DIR/bootstrap.json holds the facts)

Lines: `clusterrole NAME [label=key=value]* [aggregate=key=value]*` or `role NAMESPACE/NAME`, then one indented line per rule:
` verbs groups resources [names=a,b]` (group `_` is the core one) or ` verbs url=/a,/b`.
`clusterrolebinding NAME ClusterRole/ROLE` or `rolebinding NAMESPACE/NAME Role/ROLE`, then ` Kind [namespace/]name` per subject.
Rules of aggregating roles are left out: they follow from the labels.
"""
import json
import sys

BOOT = ("kubernetes.io/bootstrapping", "rbac-defaults")


def rules(role):
    for r in role.get("rules") or []:
        verbs = ",".join(r["verbs"])
        if r.get("nonResourceURLs"):
            print(f" {verbs} url={','.join(r['nonResourceURLs'])}")
            continue
        groups = ",".join(g or "_" for g in r["apiGroups"])
        names = " names=" + ",".join(r["resourceNames"]) if r.get("resourceNames") else ""
        print(f" {verbs} {groups} {','.join(r['resources'])}{names}")


def head(word, name, o):
    labels = [f" label={k}={v}" for k, v in sorted((o.get("labels") or {}).items()) if (k, v) != BOOT]
    agg = [
        f" aggregate={k}={v}"
        for s in (o.get("aggregationRule") or {}).get("clusterRoleSelectors", [])
        for k, v in s["matchLabels"].items()
    ]
    print(f"{word} {name}{''.join(labels)}{''.join(agg)}")


d = json.load(open(sys.argv[1] + "/bootstrap.json"))
for name, o in sorted(d["clusterRoles"].items()):
    head("clusterrole", name, o)
    if not o.get("aggregationRule"):
        rules(o)
for name, o in sorted(d["roles"].items()):
    head("role", name, o)
    rules(o)
for word, key in (("clusterrolebinding", "clusterRoleBindings"), ("rolebinding", "roleBindings")):
    for name, o in sorted(d[key].items()):
        print(f"{word} {name} {o['roleRef']['kind']}/{o['roleRef']['name']}")
        for s in o.get("subjects") or []:
            print(f" {s['kind']} {s['namespace'] + '/' if s.get('namespace') else ''}{s['name']}")
