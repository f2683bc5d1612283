"""The replica pod, as a reviewer reads it: tests/golden/rendering. `make golden` (GOLDEN=write) writes them anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest
from moefleet_operator import names
from moefleet_operator.api import EngineSpec, MoEFleet, MoEFleetSpec
from moefleet_operator.api.durations import parse_duration_s
from moefleet_operator.rendering.credential import replica_token, token_sha256
from moefleet_operator.rendering.engine_args import KNOWN_ARGS
from moefleet_operator.rendering.pdb import render_pdb
from moefleet_operator.rendering.pod import RenderedPod, render_pod
from moefleet_operator.rendering.problem import Problem
from moefleet_operator.rendering.service import render_service
from moefleet_operator.rendering.source import Mount, mount_for
from moefleet_runtime.config import parse_config
from moefleet_runtime.engine.arguments import SimulatedArguments, TensorRTLLMArguments, TorchArguments
from moefleet_runtime.source import locate_source
from moefleet_testing.builders import a_resource
from pydantic import BaseModel, ValidationError

GOLDEN = Path(__file__).parents[2] / "golden" / "rendering"
KEY = bytes(range(32))


def production() -> MoEFleet:
    """As in the design, with every override that a user has."""
    return a_resource(
        model={"name": "deepseek-v2-chat", "source": "pvc://weights/deepseek-v2", "contextLength": 131072},
        engine={
            "type": "TensorRTLLM",
            "image": "runtime-tensorrt-llm:1",
            "parallelism": {"tensor": 8, "expert": 8},
            "precision": "FP8",
            "kvCache": {"precision": "FP8", "memoryFraction": 0.8, "reuse": True},
            "args": {"stream_interval": 5, "autotunerCache": "/cache/$5"},
        },
        replica={
            "gpus": 8,
            "gpuProducts": ["NVIDIA-H800", "NVIDIA-H100"],
            "podTemplate": {
                "labels": {"team": "chat"},
                "annotations": {"cost-centre": "42"},
                "nodeSelector": {"pool": "gpu"},
                "tolerations": [
                    {"key": "dedicated", "operator": "Equal", "value": "chat", "effect": "NoSchedule"}
                ],
                "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
                "volumes": [{"name": "certs", "secret": {"secretName": "certs"}}],
                "volumeMounts": [{"name": "certs", "mountPath": "/etc/certs", "readOnly": True}],
                "resources": {"requests": {"cpu": 32}, "limits": {"memory": "512Gi"}},
                "priorityClassName": "inference",
                "imagePullSecrets": [{"name": "registry"}],
            },
        },
        limits={"streamDuration": "15m"},
        rollout={"drainTimeout": "20m"},
    )


def pod_of(resource: MoEFleet, *, gateway: bool = True, key: bytes | None = KEY) -> dict[str, Any]:
    rendered = render_pod(resource, gateway=gateway, token_sha256=token_sha256(key, resource.metadata.uid))
    assert isinstance(rendered, RenderedPod)
    return rendered.at(3)


CASES = {
    "pod-simulated": lambda: pod_of(a_resource()),
    "pod-tensorrt-llm": lambda: pod_of(production()),
    "pod-torch-without-gateway-and-gpus": lambda: pod_of(
        a_resource(
            engine={"type": "Torch", "image": "runtime-torch:1"}, replica={"gpus": 0, "sharedMemory": "1Gi"}
        ),
        gateway=False,
        key=None,
    ),
    "pod-torch-fetches": lambda: pod_of(
        a_resource(
            model={
                "name": "deepseek-v2",
                "source": "hf://deepseek-ai/DeepSeek-V2-Lite@604d5664dddd88a0433dbae533b7fe9472482de0",
                "cache": {"volume": {"hostPath": {"path": "/mnt/nvme/moefleet", "type": "Directory"}}},
                "credentials": {"name": "hub"},
            },
            engine={"type": "Torch", "image": "runtime-torch:1"},
            replica={
                "gpus": 1,
                "podTemplate": {"env": [{"name": "HF_ENDPOINT", "value": "https://hub.example"}]},
            },
        )
    ),
    "pod-torch-oci": lambda: pod_of(
        a_resource(
            model={"name": "deepseek-v2", "source": "oci://registry.example/models/deepseek-v2:fp8"},
            engine={"type": "Torch", "image": "runtime-torch:1"},
            replica={"gpus": 1},
        )
    ),
    "service": lambda: render_service(a_resource()),
    "pdb": lambda: render_pdb(a_resource(rollout={"maxUnavailable": 2}), 5),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    path = GOLDEN / f"{name}.json"
    text = json.dumps(CASES[name](), indent=2, ensure_ascii=False) + "\n"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text, "see `make golden`"


def configuration(pod: dict[str, Any]) -> str:
    env = {v["name"]: v.get("value", "") for v in pod["spec"]["containers"][0]["env"]}
    # What Kubernetes makes of it.
    return str(env[names.ENV_RUNTIME_CONFIG]).replace("$$", "$")


def test_the_runtime_takes_the_configuration() -> None:
    simulated = parse_config(
        configuration(
            pod_of(a_resource(engine={"type": "Simulated", "image": "r", "args": {"speed": 0.02}}))
        ),
        "pod",
    )
    assert simulated.fleet == "models/chat"
    assert simulated.engine.arguments == SimulatedArguments(speed=0.02)
    assert simulated.control.token_sha256 == token_sha256(KEY, "fleet-uid")
    torch = parse_config(
        configuration(pod_of(a_resource(engine={"type": "Torch", "image": "r", "args": {"blocks": 64}}))),
        "pod",
    )
    assert torch.engine.arguments == TorchArguments(blocks=64)
    assert torch.drain_timeout_s == 900.0


def test_a_dollar_in_the_configuration_is_not_a_variable() -> None:
    assert json.loads(configuration(pod_of(production())))["engine"]["args"]["autotunerCache"] == "/cache/$5"


def test_the_pod_holds_no_secret() -> None:
    assert replica_token(KEY, "fleet-uid") not in json.dumps(pod_of(a_resource()))
    assert token_sha256(KEY, "fleet-uid") != token_sha256(KEY, "another-uid")
    assert token_sha256(None, "fleet-uid") == ""


def test_grace_covers_a_whole_drain() -> None:
    assert pod_of(production())["spec"]["terminationGracePeriodSeconds"] == 20 * 60 + 30


def test_sigterm_does_not_come_before_the_process_can_hear_it() -> None:
    """Found by 500 edits in a minute: pods deleted as they began kept their GPUs for the whole grace."""
    for resource in (a_resource(), production()):
        spec = pod_of(resource)["spec"]
        (container,) = spec["containers"]
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command == ["python3", "-c", "import time; time.sleep(3)"]
        assert spec["terminationGracePeriodSeconds"] - 3 > parse_duration_s(
            resource.spec.rollout.drain_timeout
        )


def test_it_runs_under_restricted_pod_security() -> None:
    """The rules of the level `restricted` that concern what we render."""
    for resource in (a_resource(), production()):
        spec = pod_of(resource)["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {k for v in spec["volumes"] for k in v if k != "name"} <= {
            "emptyDir",
            "secret",
            "persistentVolumeClaim",
        }
        (container,) = spec["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)


def test_gpu_products_go_into_every_alternative_of_the_users_affinity() -> None:
    zone = {"key": "zone", "operator": "In", "values": ["a"]}
    required = {
        "nodeSelectorTerms": [{"matchExpressions": [zone]}, {"matchFields": [{"key": "metadata.name"}]}]
    }
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    resource = a_resource(replica={"gpus": 8, "gpuProducts": ["H800"], "podTemplate": {"affinity": affinity}})
    terms = pod_of(resource)["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    for term in terms["nodeSelectorTerms"]:
        assert {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["H800"]} in term[
            "matchExpressions"
        ]


# --- problems --------------------------------------------------------------------------------------------------


def test_known_arguments_are_those_of_the_runtime() -> None:
    models: dict[str, type[BaseModel]] = {
        "Simulated": SimulatedArguments,
        "Torch": TorchArguments,
        "TensorRTLLM": TensorRTLLMArguments,
    }
    for engine in get_args(EngineSpec.model_fields["type"].annotation):
        assert KNOWN_ARGS[engine] == {field.alias for field in models[engine].model_fields.values()}


def test_an_unknown_argument_is_a_problem_that_names_the_right_one() -> None:
    resource = a_resource(engine={"type": "Simulated", "image": "r", "args": {"sped": 1}})
    problem = render_pod(resource, gateway=True, token_sha256="")
    assert isinstance(problem, Problem)
    assert problem.reason == "EngineArgumentUnknown"
    assert "'sped'" in problem.message
    assert "did you mean 'speed'" in problem.message


@pytest.mark.parametrize(
    ("args", "reason", "says"),
    [
        ({"strem_interval": 1}, "EngineArgumentUnknown", "did you mean 'stream_interval'?"),
        ({"cudaGraphConfig": {}}, "EngineArgumentUnknown", "did you mean 'cuda_graph_config'?"),
        ({"prest": "Latency"}, "EngineArgumentUnknown", "did you mean 'preset'?"),
        ({"kv_cache_config": {"enable_partial": True}}, "EngineArgumentUnknown", "'enable_partial_reuse'"),
        ({"tensorParallelSize": 4}, "EngineArgumentUnknown", "comes from engine.parallelism.tensor"),
        ({"tensor_parallel_size": 4}, "EngineArgumentInvalid", "comes from engine.parallelism.tensor"),
        ({"enable_chunked_prefill": False}, "EngineArgumentInvalid", "cannot be set: it is always on"),
        ({"stream_interval": "2"}, "EngineArgumentInvalid", "wanted int, found '2'"),
        ({"preset": "Latency", "gpuMemoryGib": 79.6, "stream_interval": 2, "moe_config": {}}, "", ""),
        ({}, "", ""),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments_of_the_llm_api_are_those_of_the_snapshot_that_the_runtime_has(
    args: dict[str, Any], reason: str, says: str
) -> None:
    rendered = render_pod(
        a_resource(engine={"type": "TensorRTLLM", "image": "r", "args": args}), gateway=True, token_sha256=""
    )
    assert (rendered.reason if isinstance(rendered, Problem) else "") == reason
    if isinstance(rendered, Problem):
        assert rendered.message.startswith("spec.engine.args: ")
        assert says in rendered.message
        with pytest.raises(ValidationError):
            TensorRTLLMArguments.model_validate(args)
    else:
        assert TensorRTLLMArguments.model_validate(args)


@pytest.mark.parametrize(
    ("source", "fine"),
    [
        ("file:///models/tiny", True),
        ("file://models/tiny", False),
        ("file:///models/../etc", False),
        ("pvc://weights/deepseek-v2", True),
        ("pvc://weights", True),
        ("pvc:///deepseek-v2", False),
        ("pvc://Weights/x", False),
        ("hf://deepseek-ai/DeepSeek-V2-Lite", True),
        ("hf://deepseek-ai/DeepSeek-V2-Lite@main", True),
        ("hf://deepseek-ai", False),
        ("s3://bucket/path", True),
        ("s3:///path", False),
        ("gs://bucket/path", True),
        ("https://host/folder", True),
        ("https://host/folder?signature=1", False),
        ("oci://host/image:1", True),
    ],
)
def test_model_sources(source: str, fine: bool) -> None:
    found = mount_for(a_resource(model={"name": "m", "source": source}).spec)
    assert isinstance(found, Problem) is not fine, found
    if isinstance(found, Problem):
        assert found.reason == "ModelSourceMissing"
        assert source in found.message


def spec_of(source: str, engine: str = "Torch", **model: Any) -> MoEFleetSpec:
    return a_resource(
        model={"name": "m", "source": source, **model}, engine={"type": engine, "image": "r"}
    ).spec


@pytest.mark.parametrize(
    "source", ["hf://a/b", "s3://bucket/path", "gs://bucket/path", "https://host/folder"]
)
def test_what_is_fetched_gets_a_cache_that_can_be_written(source: str) -> None:
    cache = "/var/lib/moefleet/cache"
    assert mount_for(spec_of(source)) == Mount(cache, {"emptyDir": {}}, fetches=True)
    claim = {"persistentVolumeClaim": {"claimName": "weights"}}
    assert mount_for(spec_of(source, cache={"volume": claim})) == Mount(cache, claim, fetches=True)
    # A rehearsal needs no weights.
    assert mount_for(spec_of(source, "Simulated")) == Mount()


def test_a_fetch_has_time_and_its_secrets_by_reference_only() -> None:
    fleet = a_resource(
        model={"name": "m", "source": "s3://bucket/path", "credentials": {"name": "bucket"}},
        engine={"type": "Torch", "image": "r"},
    )
    (container,) = pod_of(fleet)["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    config = parse_config(configuration(pod_of(fleet)), "pod")
    assert config.model.cache == "/var/lib/moefleet/cache"
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == "model")
    assert mount == {"name": "model", "mountPath": config.model.cache}
    without = pod_of(a_resource(engine={"type": "Torch", "image": "r"}))["spec"]["containers"][0]
    assert "envFrom" not in without
    assert (
        container["startupProbe"]["failureThreshold"] - without["startupProbe"]["failureThreshold"]
        == 4 * 3600
    )


def test_the_operator_and_the_runtime_mean_the_same_folders() -> None:
    for source in ("pvc://weights/a", "oci://registry/image:1"):
        mount = mount_for(spec_of(source))
        assert isinstance(mount, Mount)
        folder = locate_source(source)
        assert isinstance(folder, Path)
        assert folder.is_relative_to(mount.path)


def test_a_volume_cannot_take_another_name() -> None:
    volume = {"name": "tmp", "emptyDir": {}}
    fleet = a_resource(
        model={"name": "m", "source": "s3://bucket/path", "cache": {"volume": volume}},
        engine={"type": "Torch", "image": "r"},
    )
    assert {"name": "model", "emptyDir": {}} in pod_of(fleet)["spec"]["volumes"]


def test_the_budget_changes_with_every_replica_that_its_selector_begins_or_ceases_to_leave_out() -> None:
    """Seen on a real cluster: after a pod's label left the selector the budget allowed one eviction too many for 30 s."""
    fleet = a_resource()
    marks = [
        render_pdb(fleet, 3, left_out)["metadata"]["labels"]["moefleet.io/left-out"]
        for left_out in ([], ["a"], ["b"], ["a", "b"], ["b", "a"])
    ]
    assert marks[0] == "none"
    assert marks[3] == marks[4]
    assert len(set(marks)) == 4
