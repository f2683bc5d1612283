"""Pydantic's JSON Schema (draft 2020-12) -> the structural subset of OpenAPI v3 that CRDs accept.

A small generator of our own, and not kube-custom-resource 0.7: it writes `anyOf` with null for optional fields unless its own
Optional is used everywhere, may write `default: null`, and needs a second pass for list types, reasons of CEL rules and
descriptions under a default; that pass would be as long as this file.
"""

from typing import Any

from pydantic import BaseModel

# Everything else that pydantic may write is a mistake in a model, not something to pass on.
_KEPT = (
    "description",
    "type",
    "format",
    "enum",
    "default",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "required",
    "items",
    "additionalProperties",
    "properties",
)
_DROPPED = ("title", "$defs")


def structural_schema(model: type[BaseModel], *, defaults: bool = True) -> dict[str, Any]:
    """defaults=False: for status, where a field that nobody wrote has to stay absent."""
    raw = model.model_json_schema(by_alias=True, mode="validation")
    schema = _structural(raw, raw.get("$defs", {}), path=model.__name__)
    return schema if defaults else _without_defaults(schema)


def _structural(node: dict[str, Any], defs: dict[str, Any], path: str) -> dict[str, Any]:
    node = _resolved(node, defs, path)
    out: dict[str, Any] = {}
    for key in (*_KEPT, *sorted(k for k in node if k.startswith("x-kubernetes-"))):
        if key not in node:
            continue
        value = node[key]
        match key:
            case "default":
                if value is not None:
                    # Whole, not {}: the API server tries CEL rules on a default before it fills in nested defaults.
                    out[key] = _without_nulls(value)
            case "properties":
                out[key] = {k: _structural(v, defs, f"{path}.{k}") for k, v in value.items()}
            case "items":
                out[key] = _structural(value, defs, f"{path}[]")
            case "additionalProperties":
                # `extra` decides what we do with unknown fields; the API server prunes them.
                if isinstance(value, dict):
                    out[key] = _structural(value, defs, f"{path}{{}}")
            case "description":
                out[key] = " ".join(value.split())
            case _:
                out[key] = value
    if out.get("type") == "integer":
        out.setdefault("format", "int64")
    unknown = sorted(
        k for k in node if k not in _KEPT and k not in _DROPPED and not k.startswith("x-kubernetes-")
    )
    if unknown:
        raise ValueError(f"{path}: a structural schema has no {', '.join(unknown)}")
    _require_limits(out, path)
    return out


def _resolved(node: dict[str, Any], defs: dict[str, Any], path: str) -> dict[str, Any]:
    """Without $ref, and an optional field as what it is when it is there."""
    while True:
        if "$ref" in node:
            rest = {k: v for k, v in node.items() if k != "$ref"}
            node = {**defs[node["$ref"].removeprefix("#/$defs/")], **rest}
        elif "anyOf" in node:
            kinds = [n for n in node["anyOf"] if n.get("type") != "null"]
            if len(kinds) != 1:
                raise ValueError(
                    f"{path}: a field has one type in a structural schema, found {node['anyOf']}"
                )
            # Absent, never null: null breaks server-side apply.
            node = {**kinds[0], **{k: v for k, v in node.items() if k != "anyOf"}}
        else:
            return node


def _without_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    out = {k: v for k, v in schema.items() if k != "default"}
    for key in ("items", "additionalProperties"):
        if key in out:
            out[key] = _without_defaults(out[key])
    if "properties" in out:
        out["properties"] = {k: _without_defaults(v) for k, v in out["properties"].items()}
    return out


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return value


def _require_limits(schema: dict[str, Any], path: str) -> None:
    """The API server refuses CEL rules over things without a maximum, and etcd refuses objects above 1.5 MiB."""
    kind = schema.get("type")
    if kind == "string" and "maxLength" not in schema and "enum" not in schema:
        raise ValueError(f"{path}: a string needs a maximum length")
    if kind == "array" and "maxItems" not in schema:
        raise ValueError(f"{path}: a list needs a maximum length")
    if kind == "object" and "additionalProperties" in schema and "maxProperties" not in schema:
        raise ValueError(f"{path}: a map needs a maximum size")
