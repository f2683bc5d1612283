"""Every condition type and every reason: one vocabulary for status, Events, log fields and metric labels.

Reasons are API: users match on them. A reason is added here with its meaning before anything writes it.
"""

from typing import Final

# --- types -------------------------------------------------------------------------------------------------------
READY: Final = "Ready"
AVAILABLE: Final = "Available"
PROGRESSING: Final = "Progressing"
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"
MODEL_READY: Final = "ModelReady"
CAPACITY_LIMITED: Final = "CapacityLimited"
SCALING_LIMITED: Final = "ScalingLimited"
ROLLOUT_HELD: Final = "RolloutHeld"
DISRUPTED: Final = "Disrupted"

CONDITION_TYPES: Final[dict[str, str]] = {
    READY: "As many replicas of the wanted revision serve as are wanted, and the gateways know them.",
    AVAILABLE: "At least minReplicas replicas serve, whatever their revision.",
    PROGRESSING: "Replicas are being started, replaced or taken away.",
    RECONCILING: "The operator still works towards the newest spec (kstatus: not done yet).",
    STALLED: "The operator cannot go on without a change from outside (kstatus: failed).",
    MODEL_READY: "The model's weights can be had and the engine has loaded them.",
    CAPACITY_LIMITED: "Fewer replicas run than are wanted, because the cluster has no room for them.",
    SCALING_LIMITED: "The number of replicas is not what is asked for or needed, because a bound or the size of a step holds it.",
    ROLLOUT_HELD: "A rollout waits, because going on would take capacity that is needed.",
    DISRUPTED: "Somebody or something outside takes replicas away: a node is emptied, removed or lost, a GPU failed, a pod was evicted.",
}

# --- reasons -----------------------------------------------------------------------------------------------------
# Ready and Available
ALL_REPLICAS_READY: Final = "AllReplicasReady"
MINIMUM_REPLICAS_READY: Final = "MinimumReplicasReady"
REPLICAS_STARTING: Final = "ReplicasStarting"
REPLICAS_NOT_READY: Final = "ReplicasNotReady"
NO_REPLICAS: Final = "NoReplicas"
ASLEEP: Final = "Asleep"
WAKING: Final = "Waking"
SCALED_TO_ZERO: Final = "ScaledToZero"
BEING_DELETED: Final = "BeingDeleted"
NOT_RECONCILED_YET: Final = "NotReconciledYet"
SPEC_INVALID: Final = "SpecInvalid"
MODEL_NAME_TAKEN: Final = "ModelNameTaken"
NOT_REGISTERED: Final = "NotRegistered"
NO_GATEWAY: Final = "NoGateway"
# Progressing and Reconciling
UP_TO_DATE: Final = "UpToDate"
SCALING_UP: Final = "ScalingUp"
SCALING_DOWN: Final = "ScalingDown"
WAITING_FOR_DRAIN: Final = "WaitingForDrain"
ROLLOUT_IN_PROGRESS: Final = "RolloutInProgress"
REPLACING_REPLICA: Final = "ReplacingReplica"
# why a replica does not come up (Ready, ModelReady, Stalled)
IMAGE_PULL_FAILED: Final = "ImagePullFailed"
CONTAINER_FAILED: Final = "ContainerFailed"
CRASH_LOOP: Final = "CrashLoop"
START_TIMED_OUT: Final = "StartTimedOut"
ADDRESS_UNAVAILABLE: Final = "AddressUnavailable"
POD_REFUSED: Final = "PodRefused"
POD_EVICTED: Final = "PodEvicted"
PERMISSION_MISSING: Final = "PermissionMissing"
NAMESPACE_TERMINATING: Final = "NamespaceTerminating"
API_UNAVAILABLE: Final = "APIUnavailable"
INTERNAL_ERROR: Final = "InternalError"
NAME_IN_USE: Final = "NameInUse"
NOT_STALLED: Final = "NotStalled"
# ModelReady
MODEL_LOADED: Final = "ModelLoaded"
MODEL_LOADING: Final = "ModelLoading"
MODEL_FETCHING: Final = "ModelFetching"
MODEL_UNKNOWN: Final = "ModelUnknown"
MODEL_SOURCE_MISSING: Final = "ModelSourceMissing"
MODEL_SOURCE_FORBIDDEN: Final = "ModelSourceForbidden"
MODEL_SOURCE_UNREACHABLE: Final = "ModelSourceUnreachable"
MODEL_MISMATCH: Final = "ModelMismatch"
MODEL_CHECKSUM_MISMATCH: Final = "ModelChecksumMismatch"
MODEL_CACHE_FULL: Final = "ModelCacheFull"
MODEL_CACHE_UNUSABLE: Final = "ModelCacheUnusable"
MODEL_FETCH_FAILED: Final = "ModelFetchFailed"
MODEL_UNREADABLE: Final = "ModelUnreadable"
MODEL_UNSUPPORTED: Final = "ModelUnsupported"
OUT_OF_MEMORY: Final = "OutOfMemory"
ENGINE_ARGUMENT_UNKNOWN: Final = "EngineArgumentUnknown"
ENGINE_ARGUMENT_INVALID: Final = "EngineArgumentInvalid"
ENGINE_UNAVAILABLE: Final = "EngineUnavailable"
ENGINE_START_FAILED: Final = "EngineStartFailed"
ENGINE_FAILED: Final = "EngineFailed"
CONFIG_INVALID: Final = "ConfigInvalid"
CANARY_FAILED: Final = "CanaryFailed"
# CapacityLimited
CAPACITY_SUFFICIENT: Final = "CapacitySufficient"
UNSCHEDULABLE: Final = "Unschedulable"
GPUS_EXHAUSTED: Final = "GpusExhausted"
NO_NODE_FITS: Final = "NoNodeFits"
QUOTA_EXCEEDED: Final = "QuotaExceeded"
FREE_GPUS_UNKNOWN: Final = "FreeGpusUnknown"
# ScalingLimited, and the reasons of decisions
NOT_LIMITED: Final = "NotLimited"
AT_MINIMUM: Final = "AtMinimum"
AT_MAXIMUM: Final = "AtMaximum"
DEMAND_UNKNOWN: Final = "DemandUnknown"
DEMAND_ROSE: Final = "DemandRose"
DEMAND_FELL: Final = "DemandFell"
DEMAND_STEADY: Final = "DemandSteady"
HOLDING_BEFORE_SCALE_DOWN: Final = "HoldingBeforeScaleDown"
BYPASS_TRAFFIC: Final = "BypassTraffic"
BACKLOG: Final = "Backlog"
KV_CACHE: Final = "KVCache"
STARTS_FAILED: Final = "StartsFailed"
STEP_LIMITED: Final = "StepLimited"
OBJECTIVE_UNREACHABLE: Final = "ObjectiveUnreachable"
LOAD_UNKNOWN: Final = "LoadUnknown"
RESTARTED: Final = "Restarted"
NO_CALIBRATION: Final = "NoCalibration"
MODEL_DRIFT: Final = "ModelDrift"
FLAPPING: Final = "Flapping"
IDLE: Final = "Idle"
EXTERNAL_REPLICAS: Final = "ExternalReplicas"
ADVISORY_ONLY: Final = "AdvisoryOnly"
# RolloutHeld
NOT_HELD: Final = "NotHeld"
NO_ROOM_FOR_SURGE: Final = "NoRoomForSurge"
LAST_READY_REPLICA: Final = "LastReadyReplica"
NEW_REVISION_FAILS: Final = "NewRevisionFails"
CANARY_CRASHES: Final = "CanaryCrashes"
CANARY_NOT_READY: Final = "CanaryNotReady"
CANARY_ERRORS: Final = "CanaryErrors"
CANARY_SLOWER: Final = "CanarySlower"
# of what is written about a revision (Events and log)
REVISION_RECORDED: Final = "RevisionRecorded"
# Disrupted
NOT_DISRUPTED: Final = "NotDisrupted"
NODE_CORDONED: Final = "NodeCordoned"
NODE_BEING_REMOVED: Final = "NodeBeingRemoved"
NODE_INTERRUPTED: Final = "NodeInterrupted"
NODE_LOST: Final = "NodeLost"
GPU_FAILED: Final = "GpuFailed"
PREEMPTED: Final = "Preempted"
POD_DELETED: Final = "PodDeleted"
# of Events alone
LABELS_RESTORED: Final = "LabelsRestored"
# of a draining replica (pod condition moefleet.io/Draining)
SCALE_DOWN: Final = "ScaleDown"
ROLLOUT: Final = "Rollout"
EVICTION: Final = "Eviction"
RESUMED: Final = "Resumed"
# of the readiness gate (pod condition moefleet.io/gateway-registered)
REGISTERED: Final = "Registered"
DRAINING: Final = "Draining"

# Reason -> what it means, in one sentence, and what to do where there is something to do. Docs are made from this.
REASONS: Final[dict[str, str]] = {
    ALL_REPLICAS_READY: "Every wanted replica serves.",
    MINIMUM_REPLICAS_READY: "At least minReplicas replicas serve.",
    REPLICAS_STARTING: "Replicas start or load the model; nothing is wrong.",
    REPLICAS_NOT_READY: "Replicas that served do not serve now; their pods say why.",
    NO_REPLICAS: "No replica serves.",
    ASLEEP: "The fleet sleeps because nobody asked for idle.scaleToZeroAfter; the next request wakes it.",
    WAKING: "A request woke the fleet; its first replica starts.",
    SCALED_TO_ZERO: "spec.replicas is 0 in mode External.",
    BEING_DELETED: "The fleet is being deleted; running streams finish, nothing is created.",
    NOT_RECONCILED_YET: "The operator has not looked at this generation yet.",
    SPEC_INVALID: "The spec says something that the API server could not check; the message names the field.",
    MODEL_NAME_TAKEN: "An older fleet has this model.name at the gateway; rename the model or ask for namespace/name.",
    NOT_REGISTERED: "Replicas serve, but no gateway has taken them up yet.",
    NO_GATEWAY: "No gateway pod is ready, so no replica can be reached through it.",
    UP_TO_DATE: "Nothing is left to do.",
    SCALING_UP: "Replicas are being added.",
    SCALING_DOWN: "Replicas are being taken away after their streams have ended.",
    WAITING_FOR_DRAIN: "A replica finishes its running streams before it goes.",
    ROLLOUT_IN_PROGRESS: "Replicas of an older revision are being replaced.",
    REPLACING_REPLICA: "A replica that failed or lost its node is being replaced.",
    IMAGE_PULL_FAILED: "The node cannot pull engine.image; check its name and the pull secrets.",
    CONTAINER_FAILED: "The runtime container ended with an error; the message has its last words.",
    CRASH_LOOP: "The runtime container ends again and again; the message has its last words.",
    START_TIMED_OUT: "A replica did not serve within its start-up budget.",
    ADDRESS_UNAVAILABLE: "The runtime cannot listen on one of its ports: something else in the pod has it.",
    POD_REFUSED: "The API server refused the pod (Pod Security, an admission policy or a field); the message has its words.",
    POD_EVICTED: "The pod was evicted or its node went away.",
    PERMISSION_MISSING: "The operator lacks a right that the message names; upgrade the chart or grant it.",
    NAMESPACE_TERMINATING: "The namespace is being deleted and takes nothing new; the fleet goes with it.",
    API_UNAVAILABLE: "The API server does not answer; the operator tries again.",
    INTERNAL_ERROR: "A defect of the operator at this fleet; it tries again, other fleets go on. Please report the message.",
    NAME_IN_USE: "An object that is not ours has a name that this fleet needs; the message names it.",
    NOT_STALLED: "Nothing from outside is needed.",
    MODEL_LOADED: "A replica has loaded the model and given real tokens.",
    MODEL_LOADING: "Replicas load the model.",
    MODEL_FETCHING: "A replica fetches the weights over the network; the message says how far it is.",
    MODEL_UNKNOWN: "No replica has tried to load the model yet.",
    MODEL_SOURCE_MISSING: "There is nothing at model.source.",
    MODEL_SOURCE_FORBIDDEN: "The server of model.source refuses; check the Secret of model.credentials.",
    MODEL_SOURCE_UNREACHABLE: "The server of model.source cannot be reached or goes on failing; the fetch is tried again and goes on where it was.",
    MODEL_MISMATCH: "What model.source holds is not what the spec describes; the message says in what.",
    MODEL_CHECKSUM_MISMATCH: "What came from model.source has another checksum than the source promises, several times in a row.",
    MODEL_CACHE_FULL: "The volume of model.cache has no room for the weights, and nothing on it can be removed; the message has the numbers.",
    MODEL_CACHE_UNUSABLE: "The volume of model.cache cannot be written; give its folder to user 65532.",
    MODEL_FETCH_FAILED: "The process that fetches the weights ended without a word; the message says how.",
    MODEL_UNREADABLE: "The checkpoint at model.source cannot be read; the message names the file.",
    MODEL_UNSUPPORTED: "The engine does not know this model's architecture.",
    OUT_OF_MEMORY: "The model with its cache does not fit the memory of one replica, or the container was killed at its limit.",
    ENGINE_ARGUMENT_UNKNOWN: "engine.args names an argument that this engine does not have; the message lists those it has.",
    ENGINE_ARGUMENT_INVALID: "An engine argument has a value that the engine refuses; the message names it.",
    ENGINE_UNAVAILABLE: "The image does not hold this engine, or the hardware that it needs is missing.",
    ENGINE_START_FAILED: "The engine did not start; the message has its words. Another try may help.",
    ENGINE_FAILED: "The engine died or hung while it ran; the message has its words.",
    CONFIG_INVALID: "The runtime refused its configuration: operator and runtime image do not fit together.",
    CANARY_FAILED: "The model loaded, but the trial prompt gave no tokens.",
    CAPACITY_SUFFICIENT: "The cluster has room for the replicas that are wanted.",
    UNSCHEDULABLE: "The scheduler finds no node for a replica; the message has its words.",
    GPUS_EXHAUSTED: "All GPUs of matching nodes are taken.",
    NO_NODE_FITS: "No node has as many GPUs as one replica needs, or none has the product.",
    QUOTA_EXCEEDED: "A ResourceQuota of the namespace refuses another replica.",
    FREE_GPUS_UNKNOWN: "The operator may not see nodes or all pods, so it only learns from the scheduler whether there is room.",
    NOT_LIMITED: "The number of replicas is what the load needs.",
    AT_MINIMUM: "The load needs fewer than minReplicas.",
    AT_MAXIMUM: "The load needs more than maxReplicas; raise it or requests wait.",
    DEMAND_UNKNOWN: "The gateways' counts are missing, so the number of replicas stays and does not fall.",
    DEMAND_ROSE: "The load needs more replicas.",
    DEMAND_FELL: "The load has needed fewer replicas for the whole hold time.",
    DEMAND_STEADY: "The load needs the replicas that there are.",
    HOLDING_BEFORE_SCALE_DOWN: "The load needs fewer replicas, but not yet for the whole hold time.",
    BYPASS_TRAFFIC: "Replicas serve more than the gateways sent them; the larger number counts.",
    BACKLOG: "What already waits needs more replicas than what arrives.",
    KV_CACHE: "The contexts that are held fill more caches than the work needs replicas.",
    STARTS_FAILED: "Replicas that should long be ready are not, so others take their place.",
    STEP_LIMITED: "More replicas are needed than may start at once; the next step follows when these are ready.",
    OBJECTIVE_UNREACHABLE: "An empty step is slower than timePerOutputToken allows, so no number of replicas helps.",
    LOAD_UNKNOWN: "Replicas do not report their load, so the number of replicas stays and does not fall.",
    RESTARTED: "The operator restarted without what it knew and holds the number of replicas for one cold start.",
    NO_CALIBRATION: "No calibration fits this engine, so the number of replicas cannot be computed.",
    MODEL_DRIFT: "Steps take other times than the model of the replica says, so the number of replicas does not fall.",
    FLAPPING: "Replicas were started too often soon after others were taken down, so none is taken down for up to an hour.",
    IDLE: "Nobody asks; the fleet is about to sleep.",
    EXTERNAL_REPLICAS: "spec.replicas decides (mode External).",
    ADVISORY_ONLY: "The decision is shown and not carried out (mode Advisory).",
    NOT_HELD: "No rollout waits.",
    NO_ROOM_FOR_SURGE: "There is no room for a new replica beside the old ones, and strategy Surge forbids ending one first.",
    LAST_READY_REPLICA: "The only ready replica would have to go first; strategy InPlace allows it, Auto never does.",
    NEW_REVISION_FAILS: "Replicas of the new revision fail, so the old ones stay.",
    CANARY_CRASHES: "The first replicas of the new revision ended again and again, so it is refused and the last good revision goes on.",
    CANARY_NOT_READY: "The first replica of the new revision did not serve within its budget, so it is refused and the last good revision goes on.",
    CANARY_ERRORS: "The first replica of the new revision failed more requests than the old ones, so it is refused and the last good revision goes on.",
    CANARY_SLOWER: "The first replica of the new revision was slower than the old ones, so it is refused and the last good revision goes on.",
    REVISION_RECORDED: "A revision, its number or its verdict was written to the fleet's history.",
    NOT_DISRUPTED: "Nothing outside takes replicas away.",
    NODE_CORDONED: "A replica stands on a cordoned node; where there is room another takes its place first, then it drains.",
    NODE_BEING_REMOVED: "A node autoscaler or a scaling group removes the node of a replica; another takes its place.",
    NODE_INTERRUPTED: "The cloud takes back the node of a replica (spot notice, maintenance); another takes its place.",
    NODE_LOST: "The node of a replica does not answer; another takes its place, and the old one drains if it comes back.",
    GPU_FAILED: "A GPU under a replica is broken, as the device plugin or the kubelet says; another takes its place.",
    PREEMPTED: "The scheduler ended a replica to make room for pods of higher priority; see podTemplate.priorityClassName.",
    POD_DELETED: "Somebody deleted the pod of a replica; its streams finish within its grace, and another takes its place.",
    LABELS_RESTORED: "Somebody changed the labels of a replica's pod; they were set right again.",
    SCALE_DOWN: "The replica drains because fewer are wanted.",
    ROLLOUT: "The replica drains because a newer revision replaces it.",
    EVICTION: "The replica drains because its pod was told to go, its node is being emptied, or it will not serve again.",
    RESUMED: "The replica drained and was taken back into service.",
    REGISTERED: "The gateways send requests to this replica.",
    DRAINING: "The gateways send no more requests to this replica, because it drains.",
}


def reasons_markdown() -> str:
    """The table for the docs."""
    head = "| Condition | Meaning |\n|---|---|\n"
    types = "".join(f"| `{t}` | {meaning} |\n" for t, meaning in CONDITION_TYPES.items())
    reasons = "".join(f"| `{r}` | {meaning} |\n" for r, meaning in REASONS.items())
    return f"{head}{types}\n| Reason | Meaning |\n|---|---|\n{reasons}"
