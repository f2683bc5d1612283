"""What the operator reads from a fleet, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from moefleet_operator.api import MoEFleet, conditions
from moefleet_operator.scaling.types import Reason
from pydantic import ValidationError

EXAMPLES = Path(__file__).resolve().parents[3] / "charts/examples"


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "moefleet.io/v1alpha1",
        "kind": "MoEFleet",
        "metadata": {"name": "f", "namespace": "n", "uid": "u", "generation": 3},
        "spec": {"model": {"name": "m", "source": "file:///m"}, "engine": {"image": "i"}, **spec},
    }


def test_a_small_manifest_has_all_defaults() -> None:
    fleet = MoEFleet.parse(manifest())
    assert fleet.metadata.generation == 3
    assert fleet.spec.scaling.mode == "Automatic"
    assert fleet.spec.limits.stream_duration == "15m"
    assert fleet.spec.replicas is None
    assert fleet.spec.pricing is None
    assert fleet.spec.max_sequence_length == fleet.spec.model.context_length == 131072


@pytest.mark.parametrize(
    ("engine", "replica", "expected"),
    [
        ({}, {}, (8, 8, True)),
        ({}, {"gpus": 4}, (4, 4, True)),
        ({"type": "TensorRTLLM"}, {"gpus": 1}, (1, 1, False)),
        ({"type": "Torch"}, {"gpus": 8}, (1, 1, False)),
        ({"type": "Simulated"}, {"gpus": 0}, (1, 1, False)),
        ({"parallelism": {"tensor": 4, "expert": 2}}, {"gpus": 8}, (4, 2, True)),
    ],
)
def test_parallelism_that_nobody_wrote_fits_engine_and_gpus(
    engine: dict[str, Any], replica: dict[str, Any], expected: tuple[int, int, bool]
) -> None:
    fleet = MoEFleet.parse(manifest(engine={"image": "i", **engine}, replica=replica))
    found = fleet.spec.engine.parallelism
    assert (found.tensor, found.expert, found.attention_data) == expected


def test_fields_of_a_newer_api_are_ignored() -> None:
    fleet = MoEFleet.parse(manifest(tomorrow={"a": 1}, scaling={"maxReplicas": 4, "tomorrow": True}))
    assert fleet.spec.scaling.max_replicas == 4


def test_null_is_absent() -> None:
    fleet = MoEFleet.parse(manifest(scaling=None, replicas=None) | {"status": None})
    assert fleet.spec.scaling.min_replicas == 1
    assert fleet.status.conditions == ()


def test_what_is_read_can_be_written() -> None:
    body = manifest(
        replica={"podTemplate": {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]}},
        scaling={"idle": {"scaleToZeroAfter": "30m"}},
    )
    once = MoEFleet.parse(body).to_json()
    assert MoEFleet.parse(once).to_json() == once
    assert once["spec"]["replica"]["podTemplate"]["env"] == body["spec"]["replica"]["podTemplate"]["env"]


def test_models_cannot_be_changed() -> None:
    fleet = MoEFleet.parse(manifest())
    with pytest.raises(ValidationError):
        fleet.spec.replicas = 3  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.stem)
def test_examples_say_where_the_image_goes(path: Path) -> None:
    text = path.read_text()
    fleet = MoEFleet.parse(yaml.safe_load(text))
    assert fleet.metadata.name == path.stem
    assert fleet.spec.engine.image.startswith("SET-YOUR-REGISTRY/")
    assert "set engine.image" in text
    assert "hostPath" not in text


def test_every_reason_has_a_meaning_and_every_meaning_a_reason() -> None:
    words = {v for k, v in vars(conditions).items() if k.isupper() and isinstance(v, str)}
    assert words == set(conditions.CONDITION_TYPES) | set(conditions.REASONS)
    assert not set(conditions.CONDITION_TYPES) & set(conditions.REASONS)
    for word, meaning in (conditions.CONDITION_TYPES | conditions.REASONS).items():
        assert word[0].isupper(), word
        assert word.isalnum(), word
        assert meaning.endswith("."), word
        assert f"| `{word}` | {meaning} |" in conditions.reasons_markdown()


def test_scaling_has_no_words_of_its_own() -> None:
    """One vocabulary: what a decision says is what condition, Event, metric and docs say."""
    assert {str(reason) for reason in Reason} <= set(conditions.REASONS)
