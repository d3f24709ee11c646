"""Prints as JSON what `kubectl kustomize` makes of a folder: its resources with its JSON patches.

Only what dist/kubernetes uses, strictly by the documented rules: a target's kind and name are regular expressions for
the whole text, its labelSelector is compared with the resource's own labels; an operation on a path that is not there
is an error (RFC 6902).
"""

import json
import pathlib
import re
import sys

import yaml


def matches(target, resource):
    unknown = set(target) - {"kind", "name", "labelSelector"}
    assert not unknown, unknown
    own = {"kind": resource["kind"], "name": resource["metadata"]["name"]}
    if not all(re.fullmatch(target.get(key, ".*"), value) for key, value in own.items()):
        return False
    labels = resource["metadata"].get("labels") or {}
    wanted = [pair.split("=") for pair in target.get("labelSelector", "").split(",") if pair]
    return all(labels.get(key) == value for key, value in wanted)


def apply(resource, operation):
    *way, last = operation["path"].split("/")[1:]
    place = resource
    for name in way:
        place = place[int(name)] if isinstance(place, list) else place[name]
    assert isinstance(place, dict), operation
    assert operation["op"] == "add" or operation["op"] == "replace" and last in place, operation
    place[last] = operation["value"]


folder = pathlib.Path(sys.argv[1])
kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
assert set(kustomization) == {"resources", "patches"}, kustomization
resources = [
    resource
    for name in kustomization["resources"]
    for resource in yaml.safe_load_all((folder / name).read_text())
]
for patch in kustomization["patches"]:
    found = [resource for resource in resources if matches(patch["target"], resource)]
    for resource in found:
        for operation in yaml.safe_load(patch["patch"]):
            apply(resource, operation)
print(json.dumps(resources))
