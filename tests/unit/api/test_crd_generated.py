"""The CRD in the chart is what the types say, and what structural schemas may say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from moefleet_operator.api.base import ApiModel
from moefleet_operator.api.crd import CRD_FILE, crd_yaml, custom_resource_definition
from moefleet_operator.api.structural import structural_schema
from pydantic import Field

ROOT = Path(__file__).resolve().parents[3]


def test_the_chart_holds_the_generated_crd() -> None:
    assert (ROOT / CRD_FILE).read_text() == crd_yaml(), "run `make generate`"


def test_yaml_and_types_say_the_same() -> None:
    assert yaml.safe_load(crd_yaml()) == custom_resource_definition()


def nodes(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = [(path, schema)]
    for name, child in schema.get("properties", {}).items():
        found += nodes(child, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        found += nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        found += nodes(schema["additionalProperties"], f"{path}{{}}")
    return found


def version() -> dict[str, Any]:
    found: dict[str, Any] = custom_resource_definition()["spec"]["versions"][0]
    return found


def test_everything_has_a_maximum_and_rules_have_messages() -> None:
    root = version()["schema"]["openAPIV3Schema"]["properties"]
    for path, node in nodes(root["spec"], "spec") + nodes(root["status"], "status"):
        match node.get("type"):
            case "string":
                assert "maxLength" in node or "enum" in node, path
            case "array":
                assert "maxItems" in node, path
                assert "x-kubernetes-list-type" in node, (
                    f"{path}: server-side apply needs to know how to merge"
                )
            case "object" if "additionalProperties" in node:
                assert "maxProperties" in node, path
            case "integer" if path.startswith("spec"):
                assert "minimum" in node, path
        for rule in node.get("x-kubernetes-validations", []):
            assert rule["message"], path


def test_status_has_no_defaults() -> None:
    status = version()["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert not [path for path, node in nodes(status) if "default" in node]


def test_scale_reads_the_status_that_leaves_draining_replicas_out() -> None:
    assert version()["subresources"]["scale"] == {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }


class _Unbounded(ApiModel):
    text: str = ""


class _Both(ApiModel):
    value: Annotated[int, Field(ge=0)] | Annotated[str, Field(max_length=3)]


class _Excluded(ApiModel):
    value: Annotated[float, Field(gt=0)]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_Unbounded, "_Unbounded.text: a string needs a maximum length"),
        (_Both, "_Both.value: a field has one type"),
        (_Excluded, "_Excluded.value: a structural schema has no exclusiveMinimum"),
    ],
)
def test_a_model_that_the_api_server_would_refuse_is_refused_here(model: type[ApiModel], words: str) -> None:
    with pytest.raises(ValueError) as refused:
        structural_schema(model)
    assert words in str(refused.value)
