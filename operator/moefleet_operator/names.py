"""Every name that two parts must spell alike: labels, ports, headers, children of a fleet. Decision 0001 is the contract."""

import re
from dataclasses import dataclass
from typing import Final

# --- limits ------------------------------------------------------------------------------------------------------
# <fleet 40>-<revision 8>-<slot up to 6> is 56 characters: room below the 63 of a host name.
FLEET_NAME_MAX: Final = 40
REVISION_CHARS: Final = 8
SLOT_MAX: Final = 999_999

# --- labels ------------------------------------------------------------------------------------------------------
LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_FLEET: Final = "moefleet.io/fleet"
LABEL_REVISION: Final = "moefleet.io/revision"
LABEL_SLOT: Final = "moefleet.io/slot"
LABEL_ACTIVE: Final = "moefleet.io/active"
# On the PodDisruptionBudget: which replicas its selector leaves out, as a hash (rendering/pdb.py says why).
LABEL_LEFT_OUT: Final = "moefleet.io/left-out"
# On ControllerRevisions: good or refused, and a reason of api/conditions.py; the words are for people.
LABEL_VERDICT: Final = "moefleet.io/verdict"
LABEL_VERDICT_REASON: Final = "moefleet.io/verdict-reason"
ANNOTATION_VERDICT_MESSAGE: Final = "moefleet.io/verdict-message"
REPLICA_APP: Final = "moefleet-replica"
MANAGER: Final = "moefleet-operator"
GATEWAY_APP: Final = "moefleet"
GATEWAY_COMPONENT: Final = "gateway"
OPERATOR_COMPONENT: Final = "operator"

# --- pod conditions and gates ----------------------------------------------------------------------------------
CONDITION_DRAINING: Final = "moefleet.io/Draining"
GATE_REGISTERED: Final = "moefleet.io/gateway-registered"
# Kubernetes' own: why somebody ends this pod.
CONDITION_DISRUPTION: Final = "DisruptionTarget"

# --- replica pod ---------------------------------------------------------------------------------------------------
RUNTIME_CONTAINER: Final = "runtime"
PORT_GRPC: Final = 8500
PORT_CONTROL: Final = 8501
PORT_METRICS: Final = 9090
PORT_NAME_GRPC: Final = "grpc"
PORT_NAME_CONTROL: Final = "control"
PORT_NAME_METRICS: Final = "metrics"
HEALTH_LIVENESS: Final = "liveness"
HEALTH_READINESS: Final = "readiness"
HEALTH_STARTUP: Final = "startup"
ENV_RUNTIME_CONFIG: Final = "MOEFLEET_RUNTIME_CONFIG"
ENV_POD_UID: Final = "MOEFLEET_POD_UID"
ENV_POD_NAME: Final = "MOEFLEET_POD_NAME"
ENV_POD_NAMESPACE: Final = "MOEFLEET_POD_NAMESPACE"
ENV_PEERS: Final = "MOEFLEET_PEERS"
ENV_START_BUDGET: Final = "MOEFLEET_START_BUDGET_S"
ENV_CPU_LIMIT_MILLIS: Final = "MOEFLEET_CPU_LIMIT_MILLIS"
ENV_CONTROL_KEY_FILE: Final = "MOEFLEET_CONTROL_KEY_FILE"

# --- gateway pod -----------------------------------------------------------------------------------------------------
GATEWAY_PORT_GRPC: Final = 8080
GATEWAY_PORT_CONTROL: Final = 8502
GATEWAY_PORT_METRICS: Final = 9091
GATEWAY_PORT_HEALTH: Final = 8503

# --- headers and trailers --------------------------------------------------------------------------------------------
HEADER_CLUSTER: Final = "x-moefleet-cluster"
HEADER_DESTINATION: Final = "x-gateway-destination-endpoint"
HEADER_POD_UIDS: Final = "x-moefleet-pod-uids"
HEADER_MODEL: Final = "x-moefleet-model"
HEADER_FLEET: Final = "x-moefleet-fleet"
HEADER_REFUSED: Final = "x-moefleet-refused"
HEADER_POD: Final = "x-moefleet-pod"
TRAILER_PROMPT_TOKENS: Final = "x-usage-prompt-tokens"
TRAILER_COMPLETION_TOKENS: Final = "x-usage-completion-tokens"
TRAILER_CACHED_TOKENS: Final = "x-usage-cached-tokens"

_FLEET_NAME = re.compile(rf"[a-z](?:[-a-z0-9]{{0,{FLEET_NAME_MAX - 2}}}[a-z0-9])?")
_POD_NAME = re.compile(
    rf"(?P<fleet>{_FLEET_NAME.pattern})-(?P<revision>[0-9a-f]{{{REVISION_CHARS}}})-(?P<slot>0|[1-9][0-9]{{0,5}})"
)


@dataclass(frozen=True, slots=True, order=True)
class ReplicaName:
    fleet: str
    revision: str
    slot: int

    def __str__(self) -> str:
        return pod_name(self.fleet, self.revision, self.slot)


def is_fleet_name(name: str) -> bool:
    """A fleet's name is also its Service's: lower case, starts with a letter, no dots, at most 40 characters."""
    return _FLEET_NAME.fullmatch(name) is not None


def pod_name(fleet: str, revision: str, slot: int) -> str:
    if not 0 <= slot <= SLOT_MAX:
        raise ValueError(f"fleet {fleet}: wanted a slot from 0 to {SLOT_MAX}, found {slot}")
    if re.fullmatch(rf"[0-9a-f]{{{REVISION_CHARS}}}", revision) is None:
        raise ValueError(
            f"fleet {fleet}: wanted a revision of {REVISION_CHARS} hex digits, found {revision!r}"
        )
    return f"{fleet}-{revision}-{slot}"


def parse_pod_name(name: str) -> ReplicaName | None:
    """None when the name is not one that pod_name gives. Labels are the truth; this is for logs and 409s."""
    match = _POD_NAME.fullmatch(name)
    if match is None:
        return None
    return ReplicaName(match["fleet"], match["revision"], int(match["slot"]))


def service_name(fleet: str) -> str:
    return fleet


def pdb_name(fleet: str) -> str:
    return fleet


def revision_name(fleet: str, revision: str) -> str:
    """The ControllerRevision of one revision."""
    return f"{fleet}-{revision}"


def scaling_memory(fleet: str) -> str:
    """The ConfigMap of what scaling has learnt of the fleet, and of what it decided of late."""
    return f"{fleet}-scaling"


def replica_labels(fleet: str, revision: str, slot: int, *, active: bool = True) -> dict[str, str]:
    return {
        LABEL_NAME: REPLICA_APP,
        LABEL_MANAGED_BY: MANAGER,
        LABEL_FLEET: fleet,
        LABEL_REVISION: revision,
        LABEL_SLOT: str(slot),
        LABEL_ACTIVE: "true" if active else "false",
    }


def child_labels(fleet: str) -> dict[str, str]:
    """Of the Service, the PDB and other children that are no pods."""
    return {LABEL_NAME: REPLICA_APP, LABEL_MANAGED_BY: MANAGER, LABEL_FLEET: fleet}


def active_labels(fleet: str) -> dict[str, str]:
    """Replicas that do not drain: what the Service, the PDB and /scale select."""
    return {LABEL_FLEET: fleet, LABEL_ACTIVE: "true"}


def selector_text(labels: dict[str, str]) -> str:
    return ",".join(f"{k}={v}" for k, v in labels.items())


def active_selector(fleet: str) -> str:
    return selector_text(active_labels(fleet))


def replica_selector() -> str:
    """All replicas of all fleets, draining ones too."""
    return selector_text({LABEL_NAME: REPLICA_APP})


def fleet_selector(fleet: str) -> str:
    """All replicas of one fleet, draining ones too."""
    return selector_text({LABEL_NAME: REPLICA_APP, LABEL_FLEET: fleet})


def gateway_labels() -> dict[str, str]:
    return {LABEL_NAME: GATEWAY_APP, LABEL_COMPONENT: GATEWAY_COMPONENT}


def gateway_selector() -> str:
    return selector_text(gateway_labels())


def qualified(namespace: str, fleet: str) -> str:
    """`namespace/fleet`: the EDS cluster, the fleet's name in demand samples and in a runtime's config."""
    return f"{namespace}/{fleet}"


def parse_qualified(text: str) -> tuple[str, str] | None:
    namespace, slash, fleet = text.partition("/")
    if not slash or not namespace or not fleet or "/" in fleet:
        return None
    return namespace, fleet
