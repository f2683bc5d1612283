"""Policies by name: what is accepted, and what a person reads when it is not."""

import pytest
from moefleet_replay import policies
from moefleet_replay.policy import PolicyError


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("static:replicas=12", "static", {"replicas": 12}),
        ("hpa-arrival:target=0.6", "hpa-arrival", {"target": 0.6, "hold_s": 300, "sync_s": 15}),
        ("hpa-arrival: target=0.7 , hold_s=180", "hpa-arrival", {"target": 0.7, "hold_s": 180}),
        ("static-mean", "static-mean", {"factor": 1.3}),
    ],
)
def test_what_is_named_is_set_and_the_rest_is_as_shipped(
    text: str, name: str, expected: dict[str, float]
) -> None:
    spec, knobs = policies.parse(text)
    assert spec.name == name
    assert set(knobs) == {k.name for k in spec.knobs}
    assert {k: knobs[k] for k in expected} == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # The nearest name comes first.
        ("hpa-arival", ["'hpa-arival' is unknown; there are hpa-arrival", "static-peak"]),
        ("", ["policy '' is unknown", "static"]),
        ("hpa-arrival:tarjet=0.6", ["policy hpa-arrival", "'tarjet' is unknown; there are target", "hold_s"]),
        ("hpa-arrival:target=3", ["policy hpa-arrival: target", "wanted 0.01 to 1", "found 3"]),
        ("hpa-arrival:target=nan", ["target", "wanted 0.01 to 1", "found nan"]),
        ("hpa-arrival:target=lots", ["target: wanted a number, found 'lots'"]),
        ("hpa-arrival:target", ["wanted knob=value, found 'target'"]),
        ("hpa-arrival:", ["wanted knob=value after ':'"]),
        ("hpa-arrival:target=0.5,", ["wanted knob=value, found ''"]),
        ("hpa-arrival:target=0.5,target=0.6", ["knob target is given twice"]),
    ],
)
def test_an_error_names_what_was_wrong_and_what_there_is(text: str, words: list[str]) -> None:
    with pytest.raises(PolicyError) as error:
        policies.parse(text)
    for word in words:
        assert word in str(error.value)


def test_knobs_from_a_program_follow_the_same_rules() -> None:
    spec = policies.REGISTRY["static"]
    assert policies.checked(spec, {"replicas": 3}) == {"replicas": 3}
    with pytest.raises(PolicyError, match="replicas: wanted 1 to 4096"):
        policies.checked(spec, {"replicas": 0})


@pytest.mark.parametrize("name", list(policies.REGISTRY))
def test_every_policy_has_a_source_one_tuned_knob_and_defaults_inside_its_limits(name: str) -> None:
    spec = policies.REGISTRY[name]
    assert spec.name == name
    assert len([k for k in spec.knobs if k.tuned]) == 1
    assert policies.tuned_knob(spec).tuned
    assert len({k.name for k in spec.knobs}) == len(spec.knobs)
    assert all(k.low <= k.default <= k.high for k in spec.knobs)
    assert spec.summary
    assert len(spec.source) > 20
    built = spec.build(policies.parse(name)[1])
    assert built.interval_s > 0
