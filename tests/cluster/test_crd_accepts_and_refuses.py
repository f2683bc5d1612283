"""The API server itself judges manifests: a table per field of what it takes and what it refuses, and in which words.

Each row is a server-side dry run of a whole fleet with one change. Rules that were written but never tried are how
CRDs rot: every maximum, enum and CEL rule of `spec` has a refused row here.
"""

from __future__ import annotations

import json
import urllib.error
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from moefleet_cluster import ControlPlane, Kubectl
from moefleet_cluster.kubectl import KubectlError
from moefleet_operator.api import MoEFleet

ROOT = Path(__file__).resolve().parents[2]
CRD = ROOT / "charts/moefleet/files/crds/moefleets.yaml"
API = "/apis/moefleet.io/v1alpha1"
ABSENT = object()


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> ControlPlane:
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/moefleets.moefleet.io", "--timeout=30s")
    return control_plane


def fleet(name: str = "fleet", **changes: Any) -> dict[str, Any]:
    """A small accepted fleet; `changes` are dotted paths under spec with `__` for dots."""
    spec: dict[str, Any] = {
        "model": {"name": "m", "source": "file:///models/m"},
        "engine": {"image": "example.org/runtime:1"},
    }
    for path, value in changes.items():
        at = spec
        *parents, last = path.split("__")
        for part in parents:
            at = at.setdefault(part, {})
        if value is ABSENT:
            at.pop(last, None)
        else:
            at[last] = deepcopy(value)
    return {
        "apiVersion": "moefleet.io/v1alpha1",
        "kind": "MoEFleet",
        "metadata": {"name": name},
        "spec": spec,
    }


def refusal(plane: ControlPlane, manifest: dict[str, Any]) -> str:
    """What the API server says to a dry run; empty: it takes it. Unknown fields are errors, as kubectl asks for."""
    path = f"{API}/namespaces/default/moefleets?dryRun=All&fieldValidation=Strict"
    try:
        plane.api(path, "POST", manifest)
    except urllib.error.HTTPError as error:
        if error.code not in (400, 422):
            raise
        return str(json.loads(error.read())["message"])
    return ""


LABELS_65 = {f"l{i}": "v" for i in range(65)}

ACCEPTED: dict[str, dict[str, Any]] = {
    "nothing but what is required": {},
    "model name with punctuation": {"model__name": "deepseek-v2.5:chat_1"},
    "hf source": {"model__source": "hf://deepseek-ai/DeepSeek-V2-Chat@8e3f5f6"},
    "s3 source": {"model__source": "s3://bucket/deepseek"},
    "gs source": {"model__source": "gs://bucket/deepseek"},
    "https source": {"model__source": "https://example.org/deepseek"},
    "cache and credentials": {
        "model__source": "hf://deepseek-ai/DeepSeek-V2-Chat@8e3f5f6",
        "model__cache": {"volume": {"hostPath": {"path": "/mnt/nvme", "type": "Directory"}}},
        "model__credentials": {"name": "hub"},
    },
    "pvc source": {"model__source": "pvc://weights/deepseek"},
    "oci source": {"model__source": "oci://example.org/weights:1"},
    "long context": {"model__contextLength": 1048576},
    "Torch without a GPU": {"engine__type": "Torch", "replica__gpus": 0},
    "Simulated": {"engine__type": "Simulated", "replica__gpus": 0},
    "engine arguments of any shape": {"engine__args": {"a": 1, "b": {"c": [1, "x", True]}, "d": 0.5}},
    "half a node without a word about parallelism": {"replica__gpus": 4},
    "half a node": {
        "replica__gpus": 4,
        "engine__parallelism": {"tensor": 4, "expert": 2, "attentionData": False},
    },
    "16 GPUs": {"replica__gpus": 16, "engine__parallelism": {"tensor": 16, "expert": 16}},
    "sequence as long as the context": {
        "model__contextLength": 4096,
        "engine__limits__maxSequenceLength": 4096,
    },
    "smallest memory fraction": {"engine__kvCache__memoryFraction": 0.05},
    "shared memory as a number": {"replica__sharedMemory": 1073741824},
    "GPU products": {"replica__gpuProducts": ["NVIDIA-H800", "NVIDIA-H100-80GB-HBM3"]},
    "other GPU resource": {"replica__gpuResource": "amd.com/gpu"},
    "External with replicas": {"scaling__mode": "External", "replicas": 3, "scaling__maxReplicas": 8},
    "External asleep": {"scaling__mode": "External", "replicas": 0},
    "Advisory": {"scaling__mode": "Advisory"},
    "min equals max": {"scaling__minReplicas": 5, "scaling__maxReplicas": 5},
    "a thousand replicas": {"scaling__maxReplicas": 1000},
    "objective at its bounds": {"scaling__objective__attainmentPercent": "50"},
    "objective of nearly all": {"scaling__objective__attainmentPercent": "99.95"},
    "objective of all": {"scaling__objective__attainmentPercent": "100"},
    "fractions of a second": {"scaling__objective__timeToFirstToken": "1.5s"},
    "mixed units": {"limits__streamDuration": "1h30m", "rollout__drainTimeout": "90m"},
    "sleeping when idle": {"scaling__idle__scaleToZeroAfter": "30m"},
    "no hold at all": {"limits__hold": "0s"},
    "no queue at all": {"limits__queuedRequests": 0},
    "drain as long as a stream": {"limits__streamDuration": "20m", "rollout__drainTimeout": "20m"},
    "InPlace": {"rollout__strategy": "InPlace"},
    "pricing": {
        "pricing": {
            "currency": "CNY",
            "inputPerMillionTokens": "1",
            "cachedInputPerMillionTokens": "0.1",
            "outputPerMillionTokens": "2",
            "gpuHourCost": "14",
        }
    },
    "pod template with everything": {
        "replica__podTemplate": {
            "labels": {"kueue.x-k8s.io/queue-name": "gpu"},
            "annotations": {"example.org/note": "x"},
            "nodeSelector": {"topology.kubernetes.io/zone": "a"},
            "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}
            },
            "env": [
                {"name": "NCCL_DEBUG", "value": "INFO"},
                {"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            ],
            "volumes": [{"name": "weights", "persistentVolumeClaim": {"claimName": "w"}}],
            "volumeMounts": [{"name": "weights", "mountPath": "/models", "readOnly": True}],
            "resources": {"requests": {"cpu": 4, "memory": "16Gi"}, "limits": {"cpu": "8", "memory": "64Gi"}},
            "priorityClassName": "gpu",
            "serviceAccountName": "default",
            "imagePullSecrets": [{"name": "pull"}],
            "imagePullPolicy": "IfNotPresent",
            "runtimeClassName": "nvidia",
            "schedulerName": "default-scheduler",
        }
    },
}

# row -> (changes, words that the answer must contain: the field and the rule)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": ABSENT}, "spec.model: Required"),
    "no engine": ({"engine": ABSENT}, "spec.engine: Required"),
    "no image": ({"engine__image": ABSENT}, "spec.engine.image: Required"),
    "a misspelt field": ({"scaling__maxReplica": 3}, 'unknown field "spec.scaling.maxReplica"'),
    "model name with a slash": ({"model__name": "deepseek-ai/v2"}, "spec.model.name"),
    "empty model name": ({"model__name": ""}, "spec.model.name"),
    "long model name": ({"model__name": "m" * 129}, "spec.model.name: Too long"),
    "unknown kind of source": ({"model__source": "http://example.org/x"}, "spec.model.source"),
    "cache of two volumes": (
        {"model__cache": {"volume": {"emptyDir": {}, "hostPath": {"path": "/mnt"}}}},
        "spec.model.cache.volume",
    ),
    "cache without a volume": ({"model__cache": {}}, "spec.model.cache.volume"),
    "credentials without a name": ({"model__credentials": {}}, "spec.model.credentials.name"),
    "source with a space": ({"model__source": "hf://a b"}, "spec.model.source"),
    "long source": ({"model__source": "hf://" + "x" * 512}, "spec.model.source: Too long"),
    "no context": ({"model__contextLength": 0}, "spec.model.contextLength"),
    "huge context": ({"model__contextLength": 1 << 21}, "spec.model.contextLength"),
    "unknown engine": ({"engine__type": "vLLM"}, 'spec.engine.type: Unsupported value: "vLLM"'),
    "empty image": ({"engine__image": ""}, "spec.engine.image"),
    "unknown precision": ({"engine__precision": "INT4"}, "spec.engine.precision: Unsupported value"),
    "unknown cache precision": (
        {"engine__kvCache__precision": "INT4"},
        "spec.engine.kvCache.precision: Unsupported",
    ),
    "arguments as a list": ({"engine__args": ["--x"]}, "spec.engine.args"),
    "more arguments than 64": (
        {"engine__args": {f"a{i}": i for i in range(65)}},
        "spec.engine.args: Too many",
    ),
    "all of the memory": ({"engine__kvCache__memoryFraction": 1}, "spec.engine.kvCache.memoryFraction"),
    "no memory": ({"engine__kvCache__memoryFraction": 0}, "spec.engine.kvCache.memoryFraction"),
    "no batch": ({"engine__limits__maxBatchSize": 0}, "spec.engine.limits.maxBatchSize"),
    "huge batch": ({"engine__limits__maxBatchSize": 65537}, "spec.engine.limits.maxBatchSize"),
    "no batch tokens": ({"engine__limits__maxBatchTokens": 0}, "spec.engine.limits.maxBatchTokens"),
    "sequence longer than the context": (
        {"model__contextLength": 4096, "engine__limits__maxSequenceLength": 8192},
        "engine.limits.maxSequenceLength must not be larger than model.contextLength",
    ),
    "experts that do not divide": (
        {"engine__parallelism": {"tensor": 8, "expert": 3}},
        "parallelism.tensor must be a multiple of parallelism.expert",
    ),
    "Torch on several devices": (
        {"engine__type": "Torch", "engine__parallelism": {"tensor": 8}},
        "engine.type Torch runs on one device",
    ),
    "parallelism beyond the GPUs": (
        {"replica__gpus": 4, "engine__parallelism": {"tensor": 8}},
        "engine.parallelism.tensor must fit replica.gpus",
    ),
    "TensorRTLLM without GPUs": (
        {"replica__gpus": 0},
        "engine.type TensorRTLLM needs replica.gpus of at least 1",
    ),
    "17 GPUs": ({"replica__gpus": 17}, "spec.replica.gpus"),
    "negative GPUs": ({"replica__gpus": -1}, "spec.replica.gpus"),
    "GPU resource without a domain": ({"replica__gpuResource": "gpu"}, "spec.replica.gpuResource"),
    "the same product twice": (
        {"replica__gpuProducts": ["A", "A"]},
        "spec.replica.gpuProducts[1]: Duplicate",
    ),
    "17 products": (
        {"replica__gpuProducts": [f"P{i}" for i in range(17)]},
        "spec.replica.gpuProducts: Too many",
    ),
    "shared memory in words": ({"replica__sharedMemory": "much"}, "spec.replica.sharedMemory"),
    "unknown scaling mode": ({"scaling__mode": "Manual"}, "spec.scaling.mode: Unsupported value"),
    "min above max": (
        {"scaling__minReplicas": 3, "scaling__maxReplicas": 2},
        "minReplicas must not be larger than maxReplicas",
    ),
    "min of zero": (
        {"scaling__minReplicas": 0},
        "minReplicas must be at least 1; for a fleet that may sleep",
    ),
    "max of zero": ({"scaling__maxReplicas": 0}, "spec.scaling.maxReplicas"),
    "1001 replicas": ({"scaling__maxReplicas": 1001}, "spec.scaling.maxReplicas"),
    "External without replicas": ({"scaling__mode": "External"}, "scaling.mode External needs spec.replicas"),
    "replicas without External": ({"replicas": 2}, "needs scaling.mode External"),
    "replicas with Advisory": ({"replicas": 2, "scaling__mode": "Advisory"}, "needs scaling.mode External"),
    "negative replicas": ({"scaling__mode": "External", "replicas": -1}, "spec.replicas"),
    "half of the requests": ({"scaling__objective__attainmentPercent": "49.9"}, "must be between 50 and 100"),
    "more than all requests": (
        {"scaling__objective__attainmentPercent": "100.1"},
        "must be between 50 and 100",
    ),
    "percent sign": ({"scaling__objective__attainmentPercent": "99%"}, "attainmentPercent"),
    "percent as a number": ({"scaling__objective__attainmentPercent": 99}, "attainmentPercent"),
    "no time to first token": ({"scaling__objective__timeToFirstToken": "0s"}, "must be longer than 0s"),
    "time without a unit": ({"scaling__objective__timeToFirstToken": "2"}, "timeToFirstToken"),
    "negative time": ({"scaling__objective__timePerOutputToken": "-1s"}, "timePerOutputToken"),
    "days": ({"scaling__idle__scaleToZeroAfter": "1d"}, "scaleToZeroAfter"),
    "no idle time": ({"scaling__idle__scaleToZeroAfter": "0s"}, "must be longer than 0s"),
    "no stream": ({"limits__streamDuration": "0s"}, "must be longer than 0s"),
    "a stream of two weeks": (
        {"limits__streamDuration": "336h", "rollout__drainTimeout": "336h"},
        "must be at most 168h",
    ),
    "long hold": ({"limits__hold": "11m"}, "hold must be at most 10m"),
    "negative queue": ({"limits__queuedRequests": -1}, "spec.limits.queuedRequests"),
    "huge queue": ({"limits__queuedRequests": 1_000_001}, "spec.limits.queuedRequests"),
    "drain shorter than a stream": (
        {"limits__streamDuration": "20m", "rollout__drainTimeout": "10m"},
        "rollout.drainTimeout must be at least limits.streamDuration",
    ),
    "default drain shorter than a stream": (
        {"limits__streamDuration": "20m"},
        "rollout.drainTimeout must be at least limits.streamDuration",
    ),
    "unknown strategy": ({"rollout__strategy": "Recreate"}, "spec.rollout.strategy: Unsupported value"),
    "nobody unavailable": ({"rollout__maxUnavailable": 0}, "spec.rollout.maxUnavailable"),
    "price as a number": ({"pricing__gpuHourCost": 14}, "spec.pricing.gpuHourCost"),
    "negative price": ({"pricing__gpuHourCost": "-1"}, "spec.pricing.gpuHourCost"),
    "currency in words": ({"pricing__currency": "yuan"}, "spec.pricing.currency"),
    "reserved label": (
        {"replica__podTemplate__labels": {"moefleet.io/fleet": "x"}},
        "are set by the operator",
    ),
    "65 labels": ({"replica__podTemplate__labels": LABELS_65}, "spec.replica.podTemplate.labels: Too many"),
    "long label": ({"replica__podTemplate__labels": {"a": "x" * 64}}, "Too long"),
    "reserved annotation": (
        {"replica__podTemplate__annotations": {"moefleet.io/x": "y"}},
        "are set by the operator",
    ),
    "reserved variable": (
        {"replica__podTemplate__env": [{"name": "MOEFLEET_RUNTIME_CONFIG", "value": "{}"}]},
        "names that start with MOEFLEET_ are set by the operator",
    ),
    "variable with two sources": (
        {
            "replica__podTemplate__env": [
                {"name": "A", "value": "b", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}
            ]
        },
        "give value or valueFrom, not both",
    ),
    "the same variable twice": (
        {"replica__podTemplate__env": [{"name": "A", "value": "b"}, {"name": "A", "value": "c"}]},
        "Duplicate value",
    ),
    "reserved volume": (
        {"replica__podTemplate__volumes": [{"name": "dshm", "emptyDir": {}}]},
        "are the operator's",
    ),
    "volume without a name": ({"replica__podTemplate__volumes": [{"emptyDir": {}}]}, "name: Required"),
    "mount without a path": ({"replica__podTemplate__volumeMounts": [{"name": "a"}]}, "mountPath: Required"),
    "GPUs beside replica.gpus": (
        {"replica__podTemplate__resources": {"limits": {"nvidia.com/gpu": 8}}},
        "GPUs are set by replica.gpus",
    ),
    "unknown pull policy": (
        {"replica__podTemplate__imagePullPolicy": "Sometimes"},
        "imagePullPolicy: Unsupported",
    ),
    "unknown toleration effect": (
        {"replica__podTemplate__tolerations": [{"key": "k", "effect": "Never"}]},
        "effect: Unsupported",
    ),
    "a container in the template": ({"replica__podTemplate__containers": []}, "unknown field"),
}


@pytest.mark.parametrize("row", ACCEPTED)
def test_accepted(plane: ControlPlane, row: str) -> None:
    manifest = fleet(**ACCEPTED[row])
    assert refusal(plane, manifest) == ""


@pytest.mark.parametrize("row", REFUSED)
def test_refused(plane: ControlPlane, row: str) -> None:
    changes, words = REFUSED[row]
    answer = refusal(plane, fleet(**changes))
    assert words in answer, f"accepted, or refused for another reason: {answer!r}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a", ""),
        ("f" * 40, ""),
        ("f" * 41, "at most 40 characters"),
        ("deepseek.v2", "no dots"),
        ("7b", "start with a letter"),
    ],
)
def test_names(plane: ControlPlane, name: str, words: str) -> None:
    answer = refusal(plane, fleet(name))
    assert (words in answer) if words else answer == ""


def test_examples_are_accepted(plane: ControlPlane) -> None:
    examples = sorted((ROOT / "charts/examples").glob("*.yaml"))
    assert [e.name for e in examples] == ["deepseek-v2-rehearsal.yaml", "deepseek-v2.yaml", "tiny.yaml"]
    for path in examples:
        for manifest in yaml.safe_load_all(path.read_text()):
            assert refusal(plane, manifest) == "", path.name


def test_defaults_are_those_of_the_types(plane: ControlPlane, kubectl: Kubectl) -> None:
    kubectl.apply(fleet("defaults"))
    stored = kubectl.json("get", "moefleet", "defaults")
    ours = MoEFleet.parse(fleet("defaults")).to_json()["spec"]
    # `args` is the one free object and has no default in the schema.
    assert ours["engine"].pop("args") == {}
    # Filled in by what engine and GPUs are, which a schema cannot say.
    assert ours["engine"].pop("parallelism") == {"tensor": 8, "expert": 8, "attentionData": True}
    assert stored["spec"] == ours


def test_kubectl_scale_needs_external_mode(plane: ControlPlane, kubectl: Kubectl) -> None:
    kubectl.apply(fleet("hand", scaling__maxReplicas=9))
    with pytest.raises(KubectlError, match=r"needs scaling\.mode External"):
        kubectl("scale", "moefleet/hand", "--replicas=2")
    kubectl.apply(fleet("hand", scaling__maxReplicas=9, scaling__mode="External", replicas=1))
    kubectl("scale", "moefleet/hand", "--replicas=4")
    assert kubectl.json("get", "moefleet", "hand")["spec"]["replicas"] == 4


def test_scale_subresource_shows_status_and_selector(plane: ControlPlane, kubectl: Kubectl) -> None:
    kubectl.apply(fleet("scaled", scaling__mode="External", replicas=3, scaling__maxReplicas=3))
    selector = "moefleet.io/fleet=scaled,moefleet.io/active=true"
    status = {"replicas": 2, "selector": selector}
    kubectl(
        "patch",
        "moefleet",
        "scaled",
        "--subresource=status",
        "--type=merge",
        "-p",
        json.dumps({"status": status}),
    )
    scale = kubectl.json("get", "moefleet", "scaled", "--subresource=scale")
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == status


def test_status_is_written_apart_from_spec(plane: ControlPlane, kubectl: Kubectl) -> None:
    """A spec writer cannot write status, and a status writer moves neither spec nor generation."""
    kubectl.apply({**fleet("apart"), "status": {"replicas": 7}})
    before = kubectl.json("get", "moefleet", "apart")
    assert "status" not in before
    status = {
        "observedGeneration": 1,
        "replicas": 1,
        "readyReplicas": 1,
        "desiredReplicas": 2,
        "replicasSummary": "1/2",
        "revision": "0123abcd",
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "ReplicasStarting",
                "message": "1 of 2 replicas serve",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
        "throughput": {"outputTokensPerSecond": 51234, "utilizationPercent": 61},
        "objective": {"attainmentPercent": "99.2", "ttftP99": "1.2s", "tpotP99": "80ms"},
        "scaling": {
            "lastDecision": {
                "time": "2026-01-01T00:00:00Z", "from": 1, "to": 2, "reason": "DemandRose", "message": "because",
            }
        },
        "economics": {"costPerMillionTokens": "0.62", "revenuePerHour": "368.9", "marginPercent": "-3.5"},
        "coldStart": {"p50": "2m", "p90": "4m30s"},
    }  # fmt: skip
    body = {
        "apiVersion": "moefleet.io/v1alpha1",
        "kind": "MoEFleet",
        "metadata": {"name": "apart"},
        "status": status,
    }
    kubectl(
        "apply", "--server-side", "--subresource=status", "--field-manager=moefleet-operator", "-f", "-",
        stdin=json.dumps(body),
    )  # fmt: skip
    after = kubectl.json("get", "moefleet", "apart")
    assert after["status"] == status
    assert after["spec"] == before["spec"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert MoEFleet.parse(after).status.scaling is not None

    table = kubectl("get", "mofl", "apart").splitlines()
    assert table[0].split() == ["NAME", "READY", "REPLICAS", "TOK/S", "UTIL", "MODEL", "REASON", "AGE"]
    assert table[1].split()[:7] == ["apart", "False", "1/2", "51234", "61", "m", "ReplicasStarting"]
    assert "apart" in kubectl("get", "moefleet")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"conditions": [{"type": "Ready", "status": "Maybe", "reason": "A", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}, "status.conditions[0].status"),
        ({"conditions": [{"type": "Ready", "status": "True", "reason": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}, "status.conditions[0].reason"),
        ({"replicas": -1}, "status.replicas"),
        ({"economics": {"marginPercent": 12}}, "status.economics.marginPercent"),
    ],
)  # fmt: skip
def test_refused_status(plane: ControlPlane, kubectl: Kubectl, status: dict[str, Any], words: str) -> None:
    kubectl.apply(fleet("bad"))
    with pytest.raises(KubectlError) as refused:
        kubectl(
            "patch",
            "moefleet",
            "bad",
            "--subresource=status",
            "--type=merge",
            "-p",
            json.dumps({"status": status}),
        )
    assert words in str(refused.value)


def test_two_managers_own_variables_of_one_list(plane: ControlPlane, kubectl: Kubectl) -> None:
    """Server-side apply merges lists with keys: a team's variable stays when another manager adds one."""
    kubectl.apply(fleet("shared", replica__podTemplate={"env": [{"name": "A", "value": "1"}]}))
    other = {
        "apiVersion": "moefleet.io/v1alpha1",
        "kind": "MoEFleet",
        "metadata": {"name": "shared"},
        "spec": {"replica": {"podTemplate": {"env": [{"name": "B", "value": "2"}]}}},
    }
    kubectl("apply", "--server-side", "--field-manager=other", "-f", "-", stdin=json.dumps(other))
    env = kubectl.json("get", "moefleet", "shared")["spec"]["replica"]["podTemplate"]["env"]
    assert {e["name"] for e in env} == {"A", "B"}
