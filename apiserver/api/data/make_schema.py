#!/usr/bin/env python3
"""Writes schema.txt, the table of field facts that apiserver/api parses at start-up.

usage: make_schema.py DIR GO > schema.txt

GO is what go_facts.py wrote. DIR holds two files of facts about the published API:
  schemas.json   {"definitions": {name: OpenAPI schema with `ref` for `$ref`}}
  protobuf.json  {message: {field: {"t": tag, "type": .., "oe": omitempty, "oz": omitzero, "ptr": pointer, "json": name}}}
The format is described in src/schema.rs. Only types reachable from served kinds are written.
"""
import json
import sys

PREFIXES = [
    ("m:", "io.k8s.apimachinery.pkg.", "k8s.io.apimachinery.pkg."),
    ("x:", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.", "k8s.io.apiextensions_apiserver.pkg.apis.apiextensions."),
    ("k:", "io.k8s.kube-aggregator.pkg.apis.apiregistration.", "k8s.io.kube_aggregator.pkg.apis.apiregistration."),
    ("", "io.k8s.api.", "k8s.io.api."),
]


def short(name):
    for s, full, _ in PREFIXES:
        if name.startswith(full):
            return s + name[len(full):]
    return None


def message(name):
    for _, full, proto in PREFIXES:
        if name.startswith(full):
            return proto + name[len(full):]
    return None


def kind_of(p):
    if "ref" in p:
        return "@" + short(p["ref"])
    t = p.get("type")
    if t == "array":
        return "[]" + kind_of(p["items"])
    if t == "object":
        return "{}" + kind_of(p["additionalProperties"]) if "additionalProperties" in p else "any"
    if t == "integer":
        return {"int32": "i32"}.get(p.get("format"), "i64")
    if t == "string":
        return {"byte": "by"}.get(p.get("format"), "s")
    return {"boolean": "b", "number": "f64"}.get(t, "any")


def refs(p):
    if "ref" in p:
        yield p["ref"]
    for k in ("items", "additionalProperties"):
        if isinstance(p.get(k), dict):
            yield from refs(p[k])


def proto_fields(msg, protos, prefix=""):
    out = {}
    for name, f in protos.get(msg, {}).items():
        j = f.get("json", name)
        if j == "":
            out.update(proto_fields(f["type"], protos, f"{prefix}{f['t']}."))
        elif j != "-":
            out[j] = (f"{prefix}{f['t']}", f)
    return out


def go_type(kind):
    """What go_type in src/schema.rs prints for a shape; None where it does better than a name."""
    if kind == "{}@m:api.resource.Quantity":
        return "v1.ResourceList"
    if kind.startswith("[]"):
        return "[]" + go_type(kind[2:])
    if kind.startswith("{}"):
        return "map[string]" + go_type(kind[2:])
    if kind.startswith("@"):
        parts = kind[1:].split(":")[-1].split(".")
        return {"Quantity": "resource.Quantity"}.get(parts[-1], ".".join(parts[-2:]))
    return {"s": "string", "b": "bool", "i32": "int32", "i64": "int64", "f64": "float64", "by": "[]byte"}.get(kind, kind)


def go_words(kind, field, facts):
    """Words of a line: the field's name in Go, its named type, the embedded structs it stands in."""
    name, go, ty, way = facts
    words = []
    if field in ("kind", "apiVersion", "metadata"):
        return words
    if go != field[:1].upper() + field[1:]:
        words.append("go=" + go)
    if kind != "any" and not kind.startswith("@") and ty != go_type(kind):
        words.append("gt=" + ty)
    if way:
        words.append("in=" + way)
    return words


def main(directory, go):
    go = json.load(open(go))
    defs = json.load(open(f"{directory}/schemas.json"))
    skip, defs = set(defs["not_served_by_default"]), defs["definitions"]
    protos = json.load(open(f"{directory}/protobuf.json"))
    todo = [n for n, d in defs.items() if n not in skip and d.get("x-kubernetes-group-version-kind") and short(n)]
    seen = set()
    while todo:
        n = todo.pop()
        if n in seen:
            continue
        seen.add(n)
        for p in defs[n].get("properties", {}).values():
            todo.extend(refs(p))
    for n in sorted(seen):
        d = defs[n]
        head = [short(n)]
        gvk = d.get("x-kubernetes-group-version-kind")
        if isinstance(gvk, list) and len(gvk) == 1:
            g = gvk[0]
            head.append("gvk=%s/%s/%s" % (g["group"], g["version"], g["kind"]))
        if d.get("x-kubernetes-map-type"):
            head.append("mt=" + d["x-kubernetes-map-type"])
        if "properties" not in d:
            head.append("is=" + kind_of(d) + (":" + d["format"] if d.get("format") else ""))
        for u in d.get("x-kubernetes-unions", []):
            if u.get("discriminator"):
                head.append("union=" + u["discriminator"])
        print(" ".join(head))
        pf = proto_fields(message(n), protos)
        facts = {f[0]: f for f in go.get(n, [])}
        order = {f: i for i, f in enumerate(facts)}
        # Fields stand in the order of the struct, after apiVersion and kind.
        first = {"kind": -2, "apiVersion": -1}
        for f, p in sorted(d.get("properties", {}).items(), key=lambda e: (order.get(e[0], first.get(e[0], 999)), e[0])):
            tag, w = pf.get(f, ("-", {}))
            out = [" " + f, kind_of(p), tag]
            flags = "".join(c for c, k in (("e", "oe"), ("z", "oz"), ("p", "ptr")) if w.get(k))
            if not w:
                flags = "e"
            if f in d.get("required", []):
                flags += "r"
            out.append(flags or "-")
            lt = p.get("x-kubernetes-list-type")
            if lt == "map":
                out.append("lt=map:" + ",".join(p["x-kubernetes-list-map-keys"]))
            elif lt:
                out.append("lt=" + lt)
            if p.get("x-kubernetes-map-type"):
                out.append("mt=" + p["x-kubernetes-map-type"])
            if p.get("x-kubernetes-patch-strategy"):
                out.append("ps=" + p["x-kubernetes-patch-strategy"] + (":" + p["x-kubernetes-patch-merge-key"] if p.get("x-kubernetes-patch-merge-key") else ""))
            if "default" in p and p["default"] not in ("", {}, 0, None, False):
                out.append("d=" + json.dumps(p["default"], separators=(",", ":")))
            if p.get("enum"):
                out.append("enum=" + "|".join(p["enum"]))
            if p.get("format") in ("double", "date-time"):
                out.append("f=" + p["format"])
            if f in facts:
                out += go_words(kind_of(p), f, facts[f])
            print(" ".join(out))


main(sys.argv[1], sys.argv[2])
