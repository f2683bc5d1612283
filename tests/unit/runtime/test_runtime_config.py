"""What the configuration takes, and what it says when it does not."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from moefleet_operator.api import MoEFleet
from moefleet_operator.rendering.pod import runtime_config
from moefleet_runtime.config import check_config, parse_config
from moefleet_runtime.ending import Exit, Failure, FatalError, write_termination
from moefleet_runtime.engine.arguments import SimulatedArguments, TorchArguments
from moefleet_runtime.settings import read_settings
from moefleet_runtime.source import locate_source, resolve_source
from moefleet_weights.source import HubSource

ROOT = Path(__file__).parents[3]
# As the operator renders it (decision 0001).
FULL: dict[str, Any] = {
    "fleet": "team/chat",
    "model": {"name": "chat-model", "source": "file:///models/tiny", "contextLength": 131072},
    "engine": {
        "type": "Torch",
        "parallelism": {"tensor": 8, "expert": 8, "attentionData": True},
        "precision": "FP8",
        "limits": {"maxBatchSize": 1024, "maxBatchTokens": 4096, "maxSequenceLength": 65536},
        "kvCache": {"precision": "FP8", "memoryFraction": 0.8, "reuse": True},
        "args": {"blocks": 2048, "blockTokens": 16, "threads": 1},
    },
    "listen": "[::]:8500",
    "control": {"listen": "[::]:8501", "tokenSha256": "ab" * 32},
    "metricsListen": "[::]:9090",
    "limits": {"queuedRequests": 1000, "streamDurationS": 900},
    "drainTimeoutS": 900,
}
SMALL: dict[str, Any] = {"model": {"name": "m"}, "engine": {"type": "Simulated"}}


def failure(data: object) -> Failure:
    with pytest.raises(FatalError) as caught:
        check_config(data, "test")
    return caught.value.failure


def test_what_the_operator_renders_is_read_to_the_last_field() -> None:
    config = parse_config(json.dumps(FULL), "test")
    assert config.model_names == ("chat-model", "team/chat-model")
    assert config.context_length == 65536
    assert config.engine.arguments == TorchArguments(blocks=2048, block_tokens=16, threads=1)
    assert config.engine.parallelism.attention_data
    assert config.limits.stream_duration_s == 900


def test_what_the_operator_renders_for_the_examples_is_taken() -> None:
    """Both sides of the seam at once: a field that only one of them knows fails here and not in a cluster."""
    taken = 0
    for file in sorted((ROOT / "charts/examples").glob("*.yaml")):
        for manifest in yaml.safe_load_all(file.read_text()):
            if manifest and manifest.get("kind") == "MoEFleet":
                manifest["metadata"] = {"name": "x", "namespace": "team", "uid": "u", **manifest["metadata"]}
                rendered = runtime_config(MoEFleet.model_validate(manifest), "ab" * 32)
                assert parse_config(json.dumps(rendered), file.name).model.name
                taken += 1
    assert taken > 0


def test_a_model_and_an_engine_are_enough() -> None:
    config = check_config(SMALL, "test")
    assert config.engine.arguments == SimulatedArguments()
    assert config.model_names == ("m",)
    assert (config.listen, config.control.listen, config.metrics_listen) == (
        "[::]:8500",
        "[::]:8501",
        "[::]:9090",
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"modle": {}}, "modle: unknown; did you mean 'model'?"),
        ({"engine": {"type": "Simulatd"}}, "'Simulated'"),
        (
            {"engine": {"type": "Torch", "limits": {"maxBatch": 1}}},
            "engine.limits.maxBatch: unknown; did you mean 'maxBatchSize'?",
        ),
        ({"engine": {"type": "Torch", "kvCache": {"memoryFraction": 1.5}}}, "engine.kvCache.memoryFraction"),
        ({"control": {"tokenSha256": "abc"}}, "control.tokenSha256"),
        ({"limits": {"queuedRequests": -1}}, "limits.queuedRequests"),
        ({"limits": {"streamDurationS": 1000}}, "shorter than limits.streamDurationS"),
        ({"model": {}}, "model.name: missing"),
        ({"fleet": "chat"}, "fleet"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], says: str) -> None:
    found = failure({**SMALL, **change})
    assert found.reason == "ConfigurationInvalid"
    assert found.exit is Exit.CONFIGURATION
    assert says in found.message


def test_all_wrong_fields_are_named_at_once() -> None:
    found = failure({**SMALL, "modle": {}, "drainTimeoutS": -1, "limits": {"queued": 1}})
    for name in ("modle", "drainTimeoutS", "limits.queued"):
        assert name in found.message


@pytest.mark.parametrize(
    ("engine", "args", "says"),
    [
        ("Simulated", {"sped": 1}, "engine.args.sped: unknown; did you mean 'speed'?"),
        ("Simulated", {"faults": {"failstart": "x"}}, "did you mean 'failStart'?"),
        ("Simulated", {"speed": 0}, "engine.args.speed"),
        ("Simulated", {"zzz": 0}, "known here: calibration, speed"),
        ("Torch", {"speed": 1}, "engine.args.speed: unknown"),
        ("Torch", {"blockTokens": 0}, "engine.args.blockTokens"),
    ],
)
def test_a_wrong_engine_argument_is_named(engine: str, args: dict[str, Any], says: str) -> None:
    found = failure({"model": {"name": "m"}, "engine": {"type": engine, "args": args}})
    assert found.reason == "EngineArgumentInvalid"
    assert says in found.message


def test_what_is_no_json_says_where_it_came_from(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="MOEFLEET_RUNTIME_CONFIG: not JSON"):
        read_settings([], {"MOEFLEET_RUNTIME_CONFIG": "{"})
    with pytest.raises(FatalError, match="no configuration"):
        read_settings([], {})
    with pytest.raises(FatalError, match=r"missing\.json"):
        read_settings(["--config", str(tmp_path / "missing.json")], {})


def test_a_file_wins_over_the_variable_and_the_pod_says_who_it_is(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(FULL))
    settings = read_settings(
        ["--config", str(file)],
        {
            "MOEFLEET_RUNTIME_CONFIG": "{",
            "MOEFLEET_POD_UID": "u",
            "MOEFLEET_CPU_LIMIT_MILLIS": "2500",
        },
    )
    assert (settings.config.model.name, settings.pod_uid, settings.cpus) == ("chat-model", "u", 2)
    small = read_settings(["--config", str(file)], {"MOEFLEET_CPU_LIMIT_MILLIS": "100"})
    assert small.cpus == 1
    with pytest.raises(FatalError, match="millicores"):
        read_settings(["--config", str(file)], {"MOEFLEET_CPU_LIMIT_MILLIS": "2 CPUs"})


def test_by_hand_a_folder_and_an_address_are_enough(tmp_path: Path) -> None:
    arguments = [
        "--engine",
        "Simulated",
        "--model",
        str(tmp_path),
        "--listen",
        "127.0.0.1:1",
        "--arg",
        "speed=0.5",
    ]
    config = read_settings(arguments, {}).config
    assert config.model.name == tmp_path.name
    assert resolve_source(config.model.source) == tmp_path
    assert config.listen == "127.0.0.1:1"
    assert config.engine.args == {"speed": 0.5}
    with pytest.raises(FatalError, match="speed"):
        read_settings([*arguments[:-1], "speed"], {})


def test_sources_are_folders_or_say_what_is_wrong(tmp_path: Path) -> None:
    assert locate_source("file:///a%20b/c") == Path("/a b/c")
    assert locate_source("pvc://claim/models/tiny", pvc_root=tmp_path) == tmp_path / "claim/models/tiny"
    for source, reason in (
        ("file://host/path", "ModelSourceInvalid"),
        ("", "ModelSourceMissing"),
        ("pvc://claim/../../etc", "ModelSourceInvalid"),
        ("ftp://host/path", "ModelSourceInvalid"),
    ):
        with pytest.raises(FatalError) as caught:
            locate_source(source)
        assert caught.value.failure.reason == reason, source
        assert caught.value.failure.exit in (Exit.MODEL_SOURCE, Exit.CONFIGURATION)
    assert locate_source("hf://org/name@rev") == HubSource("org/name", "rev")
    assert locate_source("oci://registry/image:1", oci_root=tmp_path) == tmp_path
    with pytest.raises(FatalError, match="is not a folder"):
        resolve_source((tmp_path / "none").as_uri())


def test_the_termination_message_is_one_json_line_that_fits(tmp_path: Path) -> None:
    file = tmp_path / "log"
    write_termination(file, Failure("EngineDied", 'said "x"\n' * 2000))
    text = file.read_text()
    assert len(text) <= 4096
    assert text.count("\n") == 1
    assert json.loads(text)["reason"] == "EngineDied"
