"""The manifests of deploy/cluster as kubectl makes them, and what the API's types say of them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes.client
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "deploy" / "cluster"
Document = dict[str, Any]

_PLAIN: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "bool": bool,
    "float": (int, float),
    "object": object,
}


@cache
def rendered() -> str:
    """What `kubectl kustomize deploy/cluster` prints."""
    command = ["kubectl", "kustomize", str(CLUSTER)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def documents() -> list[Document]:
    """What `kubectl apply -k deploy/cluster` sends."""
    return list(yaml.safe_load_all(rendered()))


def find(kind: str, name: str) -> Document:
    """One object; a generated name is given without its hash."""
    (found,) = (
        one
        for one in documents()
        if one["kind"] == kind and re.sub(r"-[a-z0-9]{10}$", "", one["metadata"]["name"]) == name
    )
    return found


def problems(document: Mapping[str, Any]) -> Iterator[str]:
    """What in a manifest is not as the API's type has it: unknown fields, values of other types,
    fields that are missing."""
    group, _, version = document["apiVersion"].rpartition("/")
    # The client's own classes have the name of the group where two groups have a kind.
    name = version.capitalize() + document["kind"]
    if not hasattr(kubernetes.client, name):
        yield f"{group or 'core'}/{version} has no {document['kind']}"
        return
    yield from _of(document, name, document["kind"])


def _of(value: Any, kind: str, where: str) -> Iterator[str]:
    if inner := re.fullmatch(r"(?:list|List)\[(.*)\]", kind):
        if not isinstance(value, list):
            yield f"{where} is no list"
            return
        for number, item in enumerate(value):
            yield from _of(item, inner[1], f"{where}[{number}]")
    elif inner := re.fullmatch(r"(?:dict|Dict)[\[(]str, (.*)[\])]", kind):
        if not isinstance(value, dict):
            yield f"{where} is no mapping"
            return
        for key, item in value.items():
            yield from _of(item, inner[1], f"{where}.{key}")
    elif kind in _PLAIN:
        if not isinstance(value, _PLAIN[kind]) or (kind == "int" and isinstance(value, bool)):
            yield f"{where} is no {kind}: {value!r}"
    elif kind != "datetime":
        yield from _of_model(value, getattr(kubernetes.client, kind), where)


def _of_model(value: Any, model: Any, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where} is no mapping"
        return
    fields = {json: python for python, json in model.attribute_map.items()}
    found = []
    for key, item in value.items():
        if key not in fields:
            found.append(f"{where} has no field {key}")
        else:
            found += _of(item, model.openapi_types[fields[key]], f"{where}.{key}")
    yield from found
    if not found:
        try:
            model(**{fields[key]: item for key, item in value.items()})
        except ValueError as error:
            yield f"{where}: {' '.join(str(error).split())}"
