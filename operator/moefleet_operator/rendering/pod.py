"""The replica pod, to the letter of decision 0001. It is complete by itself: no ConfigMap or Secret that could be missing."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moefleet_operator import names
from moefleet_operator.api import API_VERSION, KIND, MoEFleet, MoEFleetSpec, parse_duration_s

from .engine_args import wrong_args
from .problem import Problem
from .revision import revision
from .source import CACHE_FOLDER, Mount, mount_for
from .startup import start_budget_s

Json = dict[str, Any]

# Grace beyond the drain: SIGTERM, the engine's own end, and the kubelet's slack.
GRACE_MARGIN_S = 30
# The kernel drops a signal for PID 1 that it has no handler for, and the kubelet sends SIGTERM once: to a container that has
# just begun it comes before Python is up, and is lost. So it comes this much later; deleting a replica takes as long.
SIGTERM_AFTER_S = 3
# The image has no user of ours to rely on; this is the usual "nonroot".
USER_ID = 65532
# Caches that engines write (Triton, compiled kernels): more than that is a leak.
TMP_SIZE = "32Gi"
PRODUCT_LABEL = "nvidia.com/gpu.product"

# What the container asks for when the user says nothing. No limits but the GPUs: a throttled server cuts throughput.
REQUESTS: Mapping[str, Mapping[str, str]] = {
    "TensorRTLLM": {"cpu": "4", "memory": "16Gi"},
    "Torch": {"cpu": "250m", "memory": "512Mi"},
    "Simulated": {"cpu": "50m", "memory": "128Mi"},
}


@dataclass(frozen=True, slots=True)
class RenderedPod:
    """A pod of this spec but for its slot."""

    fleet: str
    revision: str
    body: Mapping[str, Any]
    token_sha256: str

    def name(self, slot: int) -> str:
        return names.pod_name(self.fleet, self.revision, slot)

    def at(self, slot: int) -> Json:
        """All slots share what is equal in them: the body is to be read, not to be changed."""
        metadata = self.body["metadata"]
        labels = {**metadata["labels"], names.LABEL_SLOT: str(slot)}
        return {**self.body, "metadata": {**metadata, "name": self.name(slot), "labels": labels}}


def render_pod(
    fleet: MoEFleet, *, gateway: bool, token_sha256: str, slowest_start_s: float = 0.0
) -> RenderedPod | Problem:
    """`slowest_start_s`: p99 of the cold starts that were measured; 0: none was. It is not in the revision: learning rolls nothing."""
    spec = fleet.spec
    problem = wrong_args(spec.engine)
    if problem is not None:
        return problem
    mount = mount_for(spec)
    if isinstance(mount, Problem):
        return mount
    rev = revision(spec)
    template = spec.replica.pod_template
    labels = names.replica_labels(fleet.metadata.name, rev, 0)
    metadata: Json = {
        "namespace": fleet.metadata.namespace,
        "labels": {**(template.labels or {}), **labels},
        "ownerReferences": [owner_reference(fleet)],
    }
    if template.annotations:
        metadata["annotations"] = dict(template.annotations)
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": _pod_spec(
            fleet,
            mount,
            gateway,
            token_sha256,
            start_budget_s(spec.engine.type, mount.fetches, slowest_start_s),
        ),
    }
    return RenderedPod(fleet.metadata.name, rev, body, token_sha256)


def owner_reference(fleet: MoEFleet) -> Json:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": fleet.metadata.name,
        "uid": fleet.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def runtime_config(fleet: MoEFleet, token_sha256: str, *, fetches: bool = False) -> Json:
    """What `--config FILE` would hold."""
    spec = fleet.spec
    engine = spec.engine
    limits: Json = {
        "maxBatchSize": engine.limits.max_batch_size,
        "maxBatchTokens": engine.limits.max_batch_tokens,
        "maxSequenceLength": spec.max_sequence_length,
    }
    return {
        "fleet": names.qualified(fleet.metadata.namespace, fleet.metadata.name),
        "model": {
            "name": spec.model.name,
            "source": spec.model.source,
            "contextLength": spec.model.context_length,
            # Only where it means something: the configuration of other fleets is what it was.
            **({"cache": CACHE_FOLDER} if fetches else {}),
        },
        "engine": {
            "type": engine.type,
            "parallelism": engine.parallelism.to_json(),
            "precision": engine.precision,
            "limits": limits,
            "kvCache": engine.kv_cache.to_json(),
            "args": engine.args,
        },
        "listen": f"[::]:{names.PORT_GRPC}",
        "control": {"listen": f"[::]:{names.PORT_CONTROL}", "tokenSha256": token_sha256},
        "metricsListen": f"[::]:{names.PORT_METRICS}",
        "limits": {
            "queuedRequests": spec.limits.queued_requests,
            "streamDurationS": parse_duration_s(spec.limits.stream_duration),
        },
        "drainTimeoutS": parse_duration_s(spec.rollout.drain_timeout),
    }


def _pod_spec(fleet: MoEFleet, mount: Mount, gateway: bool, token_sha256: str, budget_s: int) -> Json:
    spec = fleet.spec
    template = spec.replica.pod_template
    out: Json = {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": int(parse_duration_s(spec.rollout.drain_timeout)) + GRACE_MARGIN_S,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            # Weights of 240 GB on a volume: walking through them to change the group takes minutes.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(fleet, mount, token_sha256, budget_s)],
        "volumes": _volumes(spec, mount),
        "tolerations": _tolerations(spec),
    }
    if gateway:
        out["readinessGates"] = [{"conditionType": names.GATE_REGISTERED}]
    affinity = _affinity(spec)
    if affinity:
        out["affinity"] = affinity
    if template.node_selector:
        out["nodeSelector"] = dict(template.node_selector)
    if template.image_pull_secrets:
        out["imagePullSecrets"] = [{"name": s.name} for s in template.image_pull_secrets]
    for key, value in (
        ("priorityClassName", template.priority_class_name),
        ("serviceAccountName", template.service_account_name),
        ("runtimeClassName", template.runtime_class_name),
        ("schedulerName", template.scheduler_name),
    ):
        if value is not None:
            out[key] = value
    if not out["tolerations"]:
        del out["tolerations"]
    return out


def _container(fleet: MoEFleet, mount: Mount, token_sha256: str, budget_s: int) -> Json:
    spec = fleet.spec
    template = spec.replica.pod_template
    mounts: list[Json] = [{"name": "dshm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp"}]
    if mount.volume is not None:
        read_only = {} if mount.fetches else {"readOnly": True}
        mounts.append({"name": "model", "mountPath": mount.path, **read_only})
    mounts += [copy.deepcopy(m) for m in template.volume_mounts or ()]
    container: Json = {
        "name": names.RUNTIME_CONTAINER,
        "image": spec.engine.image,
        "env": _env(fleet, mount, token_sha256, budget_s),
        "ports": [
            {"name": names.PORT_NAME_GRPC, "containerPort": names.PORT_GRPC, "protocol": "TCP"},
            {"name": names.PORT_NAME_CONTROL, "containerPort": names.PORT_CONTROL, "protocol": "TCP"},
            {"name": names.PORT_NAME_METRICS, "containerPort": names.PORT_METRICS, "protocol": "TCP"},
        ],
        "resources": _resources(spec),
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **_probes(budget_s),
        # Not the handler `sleep`: API servers before 1.30 do not take it.
        "lifecycle": {
            "preStop": {"exec": {"command": ["python3", "-c", f"import time; time.sleep({SIGTERM_AFTER_S})"]}}
        },
    }
    if mount.fetches and spec.model.credentials is not None:
        container["envFrom"] = [{"secretRef": {"name": spec.model.credentials.name}}]
    if template.image_pull_policy is not None:
        container["imagePullPolicy"] = template.image_pull_policy
    return container


def _env(fleet: MoEFleet, mount: Mount, token_sha256: str, budget_s: int) -> list[Json]:
    config = json.dumps(
        runtime_config(fleet, token_sha256, fetches=mount.fetches), separators=(",", ":"), ensure_ascii=False
    )
    ours: list[Json] = [
        {"name": names.ENV_RUNTIME_CONFIG, "value": _literal(config)},
        *(
            {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
            for name, path in (
                (names.ENV_POD_UID, "metadata.uid"),
                (names.ENV_POD_NAME, "metadata.name"),
                (names.ENV_POD_NAMESPACE, "metadata.namespace"),
            )
        ),
        {
            "name": names.ENV_CPU_LIMIT_MILLIS,
            "valueFrom": {
                "resourceFieldRef": {
                    "containerName": names.RUNTIME_CONTAINER,
                    "resource": "limits.cpu",
                    "divisor": "1m",
                }
            },
        },
        # The fleet's headless Service: who ends the answers that this replica cannot end.
        {"name": names.ENV_PEERS, "value": peers_target(fleet)},
        # What the startup probe allows: near its end a start that gets on is left to the liveness probe.
        {"name": names.ENV_START_BUDGET, "value": str(budget_s)},
        # The root file system is read-only: everything that libraries cache goes to the emptyDir.
        {"name": "HOME", "value": "/tmp"},
        {"name": "XDG_CACHE_HOME", "value": "/tmp/.cache"},
        {"name": "TRITON_CACHE_DIR", "value": "/tmp/.triton"},
        {"name": "TORCHINDUCTOR_CACHE_DIR", "value": "/tmp/.inductor"},
    ]
    theirs = [variable.to_json() for variable in fleet.spec.replica.pod_template.env or ()]
    overridden = {v["name"] for v in theirs}
    return [v for v in ours if v["name"] not in overridden] + theirs


def peers_target(fleet: MoEFleet) -> str:
    """As gRPC resolves it, to the addresses of ready replicas that do not drain."""
    service = names.service_name(fleet.metadata.name)
    return f"dns:///{service}.{fleet.metadata.namespace}:{names.PORT_GRPC}"


def _literal(text: str) -> str:
    """Kubernetes expands $(NAME) in values; $$ is a dollar sign."""
    return text.replace("$", "$$")


def _resources(spec: MoEFleetSpec) -> Json:
    template = spec.replica.pod_template.resources
    requests: Json = dict(REQUESTS[spec.engine.type])
    limits: Json = {}
    if template is not None:
        limits = {k: str(v) for k, v in (template.limits or {}).items()}
        if template.requests is not None:
            requests = {k: str(v) for k, v in template.requests.items()}
        # A limit below our own request would be refused; a limit alone is the request as well, as everywhere.
        else:
            requests.update(limits)
    if spec.replica.gpus:
        # Extended resources have one number: the request must equal the limit.
        requests[spec.replica.gpu_resource] = str(spec.replica.gpus)
        limits[spec.replica.gpu_resource] = str(spec.replica.gpus)
    return {"requests": requests, **({"limits": limits} if limits else {})}


def _probes(start_budget_s: int) -> Json:
    def grpc(service: str) -> Json:
        return {"grpc": {"port": names.PORT_GRPC, "service": service}}

    return {
        # Every second: a cold start that ends is seen at once, and a probe costs one empty RPC.
        "startupProbe": {
            **grpc(names.HEALTH_STARTUP),
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": start_budget_s,
        },
        "readinessProbe": {
            **grpc(names.HEALTH_READINESS),
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 2,
        },
        # The runtime says itself when it hangs; the probe is for a server that cannot say anything any more.
        "livenessProbe": {
            **grpc(names.HEALTH_LIVENESS),
            "periodSeconds": 10,
            "timeoutSeconds": 10,
            "failureThreshold": 6,
        },
    }


def _volumes(spec: MoEFleetSpec, mount: Mount) -> list[Json]:
    volumes: list[Json] = [
        {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": str(spec.replica.shared_memory)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": TMP_SIZE}},
    ]
    if mount.volume is not None:
        volume = {k: v for k, v in mount.volume.items() if k != "name"}
        volumes.append({"name": "model", **copy.deepcopy(volume)})
    return volumes + [copy.deepcopy(v) for v in spec.replica.pod_template.volumes or ()]


def _tolerations(spec: MoEFleetSpec) -> list[Json]:
    ours: list[Json] = []
    if spec.replica.gpus:
        # GPU nodes are commonly tainted with the name of the resource.
        ours.append({"key": spec.replica.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    return ours + [copy.deepcopy(t) for t in spec.replica.pod_template.tolerations or ()]


def _affinity(spec: MoEFleetSpec) -> Json:
    affinity: Json = copy.deepcopy(spec.replica.pod_template.affinity or {})
    if not spec.replica.gpu_products or not spec.replica.gpus:
        return affinity
    wanted = {"key": PRODUCT_LABEL, "operator": "In", "values": sorted(spec.replica.gpu_products)}
    node = affinity.setdefault("nodeAffinity", {})
    required = node.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    # Terms are alternatives, so the product goes into every one of them.
    terms = required.get("nodeSelectorTerms") or [{}]
    required["nodeSelectorTerms"] = [
        {**term, "matchExpressions": [*(term.get("matchExpressions") or ()), wanted]} for term in terms
    ]
    return affinity
