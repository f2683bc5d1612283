"""Fleets as the API server has them, and as rows for people. Rows are pure; reading is one list call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from moefleet_operator import names
from moefleet_operator.api import API_GROUP, API_VERSION, PLURAL, MoEFleet
from pydantic import ValidationError

from .exits import Exit

# More fleets than a terminal has lines; the API server answers such a page at once.
LIST_LIMIT = 500
LIST_LIMIT_S = 15
# Who changed it, for managedFields.
FIELD_MANAGER = "moefleet-cli"


class ClusterError(Exception):
    """The cluster cannot say which fleets there are; the message says why."""

    code = Exit.CLUSTER


class ConflictError(ClusterError):
    """Somebody else was quicker; trying again may work."""

    code = Exit.FAILED


@dataclass(frozen=True, slots=True)
class Row:
    """None: not measured, which is not zero."""

    namespace: str
    fleet: str
    model: str
    mode: str
    ready: str
    reason: str
    message: str
    replicas: str
    input_tokens_per_second: int | None = None
    output_tokens_per_second: int | None = None
    utilization_percent: int | None = None
    ttft_p99: str | None = None
    tpot_p99: str | None = None
    attainment_percent: str | None = None
    cost_per_million_tokens: str | None = None
    margin_percent: str | None = None
    currency: str | None = None
    decision: str | None = None
    decision_message: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def row(body: dict[str, Any]) -> Row:
    """A fleet of a newer API than ours is a row that says so, not a crash."""
    metadata = body.get("metadata") or {}
    try:
        fleet = MoEFleet.parse(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return Row(
            namespace=str(metadata.get("namespace", "")), fleet=str(metadata.get("name", "")), model="", mode="",
            ready="Unknown", reason="Unreadable", message=f"{where}: {first['msg']}", replicas="",
        )  # fmt: skip
    status = fleet.status
    ready = status.condition("Ready")
    throughput, objective, economics = status.throughput, status.objective, status.economics
    last = status.scaling.last_decision if status.scaling else None
    return Row(
        namespace=fleet.metadata.namespace,
        fleet=fleet.metadata.name,
        model=fleet.spec.model.name,
        mode=fleet.spec.scaling.mode,
        ready=ready.status if ready else "Unknown",
        reason=ready.reason if ready else "NotReconciledYet",
        message=ready.message if ready else "the operator has not looked at this fleet yet",
        replicas=f"{status.ready_replicas}/{status.desired_replicas}",
        input_tokens_per_second=throughput.input_tokens_per_second if throughput else None,
        output_tokens_per_second=throughput.output_tokens_per_second if throughput else None,
        utilization_percent=throughput.utilization_percent if throughput else None,
        ttft_p99=objective.ttft_p99 if objective else None,
        tpot_p99=objective.tpot_p99 if objective else None,
        attainment_percent=objective.attainment_percent if objective else None,
        cost_per_million_tokens=economics.cost_per_million_tokens if economics else None,
        margin_percent=economics.margin_percent if economics else None,
        currency=fleet.spec.pricing.currency if fleet.spec.pricing else None,
        decision=f"{last.from_} -> {last.to} {last.reason}" if last else None,
        decision_message=last.message if last else None,
    )


def rows(bodies: Sequence[dict[str, Any]]) -> list[Row]:
    """What needs a person first: not ready before ready, then by name."""
    return sorted(map(row, bodies), key=lambda r: (r.ready == "True", r.namespace, r.fleet))


class Cluster:
    """The cluster of the current kubeconfig context, or of the pod that we run in."""

    def __init__(self, kubeconfig: str | None, context: str | None) -> None:
        # Local: `moefleet generate` needs no Kubernetes, and this import takes most of a second.
        from kubernetes import client, config
        from kubernetes.config.config_exception import ConfigException

        try:
            config.load_kube_config(config_file=kubeconfig, context=context)
            self.namespace = _context_namespace(config, kubeconfig, context)
        except ConfigException as error:
            if kubeconfig or context:
                raise ClusterError(f"no cluster to ask: {error}") from error
            try:
                config.load_incluster_config()
            except ConfigException:
                raise ClusterError(f"no cluster to ask: {error}, and this is no pod of a cluster") from error
            self.namespace = "default"
        self._api = client.CustomObjectsApi()
        self._core = client.CoreV1Api()
        self._apps = client.AppsV1Api()

    def fleets(self, namespace: str | None) -> list[dict[str, Any]]:
        """None: of all namespaces. Raises ClusterError."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        group, version = API_GROUP, API_VERSION.partition("/")[2]
        limits = {"limit": LIST_LIMIT, "_request_timeout": LIST_LIMIT_S}
        try:
            if namespace is None:
                found = self._api.list_cluster_custom_object(group, version, PLURAL, **limits)
            else:
                found = self._api.list_namespaced_custom_object(group, version, namespace, PLURAL, **limits)
        except ApiException as error:
            raise ClusterError(_refusal(error.status, error.reason, namespace)) from error
        except (HTTPError, OSError) as error:
            raise ClusterError(f"the API server cannot be reached: {error}") from error
        items: list[dict[str, Any]] = found["items"]
        return items

    def fleet(self, namespace: str, name: str) -> dict[str, Any]:
        """Raises ClusterError."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        group, version = API_GROUP, API_VERSION.partition("/")[2]
        try:
            found: dict[str, Any] = self._api.get_namespaced_custom_object(
                group, version, namespace, PLURAL, name, _request_timeout=LIST_LIMIT_S
            )
        except ApiException as error:
            if error.status == 404:
                raise ClusterError(f"namespace {namespace} has no fleet {name}") from error
            raise ClusterError(_refusal(error.status, error.reason, namespace)) from error
        except (HTTPError, OSError) as error:
            raise ClusterError(f"the API server cannot be reached: {error}") from error
        return found

    def config_map(self, namespace: str, name: str) -> dict[str, Any] | None:
        """None: there is none, or this user may not read it. Raises ClusterError when nobody answers."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            found = self._core.read_namespaced_config_map(name, namespace, _request_timeout=LIST_LIMIT_S)
        except ApiException as error:
            if error.status in (401, 403, 404):
                return None
            raise ClusterError(f"reading ConfigMap {name}: {error.status} {error.reason}") from error
        except (HTTPError, OSError) as error:
            raise ClusterError(f"the API server cannot be reached: {error}") from error
        return {"data": found.data}

    def revisions(self, namespace: str, fleet: str) -> list[dict[str, Any]]:
        """The fleet's ControllerRevisions, as the API server's JSON. Raises ClusterError."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = self._apps.list_namespaced_controller_revision(
                namespace,
                label_selector=names.selector_text(names.child_labels(fleet)),
                _preload_content=False,
                _request_timeout=LIST_LIMIT_S,
            )
            found: list[dict[str, Any]] = json.loads(answer.data)["items"]
        except ApiException as error:
            if error.status in (401, 403):
                raise ClusterError(
                    f"you may not list controllerrevisions.apps in namespace {namespace} ({error.reason})"
                ) from error
            raise ClusterError(f"listing the revisions of {fleet}: {error.status} {error.reason}") from error
        except (HTTPError, OSError) as error:
            raise ClusterError(f"the API server cannot be reached: {error}") from error
        return found

    def patch_fleet(self, namespace: str, name: str, patch: Mapping[str, Any], *, dry_run: bool) -> None:
        """A merge patch; with metadata.resourceVersion in it only of what was read. Raises ClusterError."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        group, version = API_GROUP, API_VERSION.partition("/")[2]
        try:
            self._api.patch_namespaced_custom_object(
                group,
                version,
                namespace,
                PLURAL,
                name,
                dict(patch),
                field_manager=FIELD_MANAGER,
                _content_type="application/merge-patch+json",
                _request_timeout=LIST_LIMIT_S,
                **({"dry_run": "All"} if dry_run else {}),
            )
        except ApiException as error:
            if error.status == 409:
                raise ConflictError(
                    f"somebody has changed {name} at the same time: nothing was changed, try again"
                ) from error
            said = _said(error.body)
            raise ClusterError(f"changing fleet {name}: {error.status} {said or error.reason}") from error
        except (HTTPError, OSError) as error:
            raise ClusterError(f"the API server cannot be reached: {error}") from error


def _said(body: Any) -> str:
    """The message of a Status."""
    try:
        return str(json.loads(body)["message"])
    except (TypeError, ValueError, KeyError):
        return ""


def _context_namespace(config: Any, kubeconfig: str | None, context: str | None) -> str:
    contexts, active = config.list_kube_config_contexts(config_file=kubeconfig)
    chosen = next((c for c in contexts if c["name"] == context), active) if context else active
    return str((chosen.get("context") or {}).get("namespace") or "default")


def _refusal(status: int, reason: str, namespace: str | None) -> str:
    where = f"in namespace {namespace}" if namespace else "in all namespaces"
    match status:
        case 404:
            return f"this cluster has no {PLURAL}.{API_GROUP}: is the chart installed?"
        case 401 | 403:
            return f"you may not list {PLURAL}.{API_GROUP} {where} ({reason})"
        case _:
            return f"listing {PLURAL}.{API_GROUP} {where}: {status} {reason}"
