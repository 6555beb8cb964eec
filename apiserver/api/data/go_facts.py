#!/usr/bin/env python3
"""Facts about the Go types behind the published API, for make_schema.py.

usage: go_facts.py DIR... > go.json

Each DIR is an unpacked Go module that holds API types (k8s.io/api, k8s.io/apimachinery, k8s.io/apiextensions-apiserver,
k8s.io/kube-aggregator). Written per type, by published name: its fields in the order of the struct, each with its name in
Go, its printed type where a name hides a basic type, and the embedded structs on the way to it.
"""
import json
import os
import re
import sys

PUBLISHED = {"api": "io.k8s.api.", "apimachinery": "io.k8s.apimachinery.", "apiextensions-apiserver": "io.k8s.apiextensions-apiserver.",
             "kube-aggregator": "io.k8s.kube-aggregator."}
BASIC = re.compile(r"^(string|bool|int32|int64|float64|\[\].*|map\[.*)$")


def packages(module):
    for folder, _, files in os.walk(module):
        texts = [open(f"{folder}/{f}").read() for f in files if f.endswith(".go") and "_test" not in f and "zz_" not in f and "generated" not in f]
        if texts:
            yield os.path.relpath(folder, module), "\n".join(texts)


def parse(text):
    """Types of a package: name -> fields of a struct, or the type it stands for."""
    text = re.sub(r"/\*.*?\*/", "", re.sub(r"//[^\n]*", "", text), flags=re.S)
    types = {}
    for m in re.finditer(r"^type (\w+) struct \{\n(.*?)^\}", text, re.S | re.M):
        fields = []
        for line in m.group(2).splitlines():
            f = re.match(r"^\s*(?:(\w+)\s+)?(\*?[\w.\[\]*]+)\s*(?:`(.*)`)?\s*$", line)
            if f:
                tag = re.search(r'json:"([^"]*)"', f.group(3) or "")
                fields.append((f.group(1), f.group(2), tag.group(1).split(",")[0] if tag else None))
        types[m.group(1)] = fields
    for m in re.finditer(r"^type (\w+) ((?:\[\]|map\[)?[\w.\]\[]+)\s*$", text, re.M):
        types.setdefault(m.group(1), m.group(2))
    return types


def main(modules):
    out, meta = {}, {}
    for module in modules:
        base = os.path.basename(module).split("@")[0]
        for folder, text in packages(module):
            version = folder.rsplit("/", 1)[-1]
            types = parse(text)
            if base == "apimachinery" and folder.endswith("meta/v1"):
                meta = types

            def printed(ty):
                pointer, ty = ty.startswith("*"), ty.lstrip("*")
                if ty.startswith("[]"):
                    return "[]" + printed(ty[2:])
                m = re.match(r"^map\[([\w.]+)\](.*)$", ty)
                if m:
                    return f"map[{printed(m.group(1))}]{printed(m.group(2))}"
                if ty in types:
                    return f"{version}.{ty}"
                return re.sub(r"^(metav1|corev1|apiv1|v1|apiextensionsv1)\.", "v1.", ty)

            def walk(name, way):
                for go, ty, js in types.get(name, []):
                    bare = ty.lstrip("*")
                    if go is None and not js:
                        if bare in types and isinstance(types[bare], list):
                            yield from walk(bare, way + [bare])
                    elif js and js != "-":
                        yield js, go or bare.split(".")[-1], printed(ty), way

            for name, fields in types.items():
                if isinstance(fields, list):
                    full = PUBLISHED[base] + folder.replace("/", ".") + "." + name
                    out[full] = [[js, go, ty, ".".join(way)] for js, go, ty, way in walk(name, [])]
    json.dump(out, sys.stdout, indent=0)


main(sys.argv[1:])
