from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplicaState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_STATE_UNSPECIFIED: _ClassVar[ReplicaState]
    REPLICA_STATE_STARTING: _ClassVar[ReplicaState]
    REPLICA_STATE_LOADING: _ClassVar[ReplicaState]
    REPLICA_STATE_WARMING: _ClassVar[ReplicaState]
    REPLICA_STATE_SERVING: _ClassVar[ReplicaState]
    REPLICA_STATE_DRAINING: _ClassVar[ReplicaState]
    REPLICA_STATE_DRAINED: _ClassVar[ReplicaState]
    REPLICA_STATE_FAILED: _ClassVar[ReplicaState]
    REPLICA_STATE_FETCHING: _ClassVar[ReplicaState]
REPLICA_STATE_UNSPECIFIED: ReplicaState
REPLICA_STATE_STARTING: ReplicaState
REPLICA_STATE_LOADING: ReplicaState
REPLICA_STATE_WARMING: ReplicaState
REPLICA_STATE_SERVING: ReplicaState
REPLICA_STATE_DRAINING: ReplicaState
REPLICA_STATE_DRAINED: ReplicaState
REPLICA_STATE_FAILED: ReplicaState
REPLICA_STATE_FETCHING: ReplicaState

class StepSums(_message.Message):
    __slots__ = ("count", "time_s", "prefill_tokens", "sequences", "kv_tokens", "time_s_prefill", "time_s_sequences", "time_s_kv", "prefill_prefill", "prefill_sequences", "prefill_kv", "sequences_sequences", "sequences_kv", "kv_kv")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIME_S_PREFILL_FIELD_NUMBER: _ClassVar[int]
    TIME_S_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    TIME_S_KV_FIELD_NUMBER: _ClassVar[int]
    PREFILL_PREFILL_FIELD_NUMBER: _ClassVar[int]
    PREFILL_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    PREFILL_KV_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_KV_FIELD_NUMBER: _ClassVar[int]
    KV_KV_FIELD_NUMBER: _ClassVar[int]
    count: int
    time_s: float
    prefill_tokens: float
    sequences: float
    kv_tokens: float
    time_s_prefill: float
    time_s_sequences: float
    time_s_kv: float
    prefill_prefill: float
    prefill_sequences: float
    prefill_kv: float
    sequences_sequences: float
    sequences_kv: float
    kv_kv: float
    def __init__(self, count: _Optional[int] = ..., time_s: _Optional[float] = ..., prefill_tokens: _Optional[float] = ..., sequences: _Optional[float] = ..., kv_tokens: _Optional[float] = ..., time_s_prefill: _Optional[float] = ..., time_s_sequences: _Optional[float] = ..., time_s_kv: _Optional[float] = ..., prefill_prefill: _Optional[float] = ..., prefill_sequences: _Optional[float] = ..., prefill_kv: _Optional[float] = ..., sequences_sequences: _Optional[float] = ..., sequences_kv: _Optional[float] = ..., kv_kv: _Optional[float] = ...) -> None: ...

class Outcomes(_message.Message):
    __slots__ = ("ended", "failed", "first_tokens", "ttft_s", "ttft_s_squared", "paced", "tpot_s", "tpot_s_squared")
    ENDED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_SQUARED_FIELD_NUMBER: _ClassVar[int]
    PACED_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_SQUARED_FIELD_NUMBER: _ClassVar[int]
    ended: int
    failed: int
    first_tokens: int
    ttft_s: float
    ttft_s_squared: float
    paced: int
    tpot_s: float
    tpot_s_squared: float
    def __init__(self, ended: _Optional[int] = ..., failed: _Optional[int] = ..., first_tokens: _Optional[int] = ..., ttft_s: _Optional[float] = ..., ttft_s_squared: _Optional[float] = ..., paced: _Optional[int] = ..., tpot_s: _Optional[float] = ..., tpot_s_squared: _Optional[float] = ...) -> None: ...

class LoadSample(_message.Message):
    __slots__ = ("pod_uid", "incarnation", "seq", "state", "message", "active", "queued", "outstanding_prefill_tokens", "outstanding_decode_tokens", "kv_used_tokens", "kv_max_tokens", "steps", "prompt_tokens_total", "cached_tokens_total", "output_tokens_total", "oldest_active_s", "admitted_total", "refused_total", "cut_total", "start_s", "fetched_bytes", "fetch_bytes", "fetch_s", "outcomes", "kv_reusable_tokens", "load_s", "tune_s")
    POD_UID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_DECODE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_USED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    OLDEST_ACTIVE_S_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REFUSED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CUT_TOTAL_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FETCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    FETCH_S_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    KV_REUSABLE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    TUNE_S_FIELD_NUMBER: _ClassVar[int]
    pod_uid: str
    incarnation: str
    seq: int
    state: ReplicaState
    message: str
    active: int
    queued: int
    outstanding_prefill_tokens: int
    outstanding_decode_tokens: int
    kv_used_tokens: int
    kv_max_tokens: int
    steps: StepSums
    prompt_tokens_total: int
    cached_tokens_total: int
    output_tokens_total: int
    oldest_active_s: float
    admitted_total: int
    refused_total: int
    cut_total: int
    start_s: float
    fetched_bytes: int
    fetch_bytes: int
    fetch_s: float
    outcomes: Outcomes
    kv_reusable_tokens: int
    load_s: float
    tune_s: float
    def __init__(self, pod_uid: _Optional[str] = ..., incarnation: _Optional[str] = ..., seq: _Optional[int] = ..., state: _Optional[_Union[ReplicaState, str]] = ..., message: _Optional[str] = ..., active: _Optional[int] = ..., queued: _Optional[int] = ..., outstanding_prefill_tokens: _Optional[int] = ..., outstanding_decode_tokens: _Optional[int] = ..., kv_used_tokens: _Optional[int] = ..., kv_max_tokens: _Optional[int] = ..., steps: _Optional[_Union[StepSums, _Mapping]] = ..., prompt_tokens_total: _Optional[int] = ..., cached_tokens_total: _Optional[int] = ..., output_tokens_total: _Optional[int] = ..., oldest_active_s: _Optional[float] = ..., admitted_total: _Optional[int] = ..., refused_total: _Optional[int] = ..., cut_total: _Optional[int] = ..., start_s: _Optional[float] = ..., fetched_bytes: _Optional[int] = ..., fetch_bytes: _Optional[int] = ..., fetch_s: _Optional[float] = ..., outcomes: _Optional[_Union[Outcomes, _Mapping]] = ..., kv_reusable_tokens: _Optional[int] = ..., load_s: _Optional[float] = ..., tune_s: _Optional[float] = ...) -> None: ...

class WatchLoadRequest(_message.Message):
    __slots__ = ("interval_ms", "prefixes")
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    interval_ms: int
    prefixes: bool
    def __init__(self, interval_ms: _Optional[int] = ..., prefixes: bool = ...) -> None: ...

class WatchLoadResponse(_message.Message):
    __slots__ = ("sample", "prefixes")
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    sample: LoadSample
    prefixes: PrefixChanges
    def __init__(self, sample: _Optional[_Union[LoadSample, _Mapping]] = ..., prefixes: _Optional[_Union[PrefixChanges, _Mapping]] = ...) -> None: ...

class PrefixChanges(_message.Message):
    __slots__ = ("reset", "stored", "removed")
    RESET_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    reset: bool
    stored: _containers.RepeatedScalarFieldContainer[int]
    removed: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, reset: bool = ..., stored: _Optional[_Iterable[int]] = ..., removed: _Optional[_Iterable[int]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("reason", "pod_uid")
    REASON_FIELD_NUMBER: _ClassVar[int]
    POD_UID_FIELD_NUMBER: _ClassVar[int]
    reason: str
    pod_uid: str
    def __init__(self, reason: _Optional[str] = ..., pod_uid: _Optional[str] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("state", "active")
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    state: ReplicaState
    active: int
    def __init__(self, state: _Optional[_Union[ReplicaState, str]] = ..., active: _Optional[int] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("pod_uid",)
    POD_UID_FIELD_NUMBER: _ClassVar[int]
    pod_uid: str
    def __init__(self, pod_uid: _Optional[str] = ...) -> None: ...

class ResumeResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: ReplicaState
    def __init__(self, state: _Optional[_Union[ReplicaState, str]] = ...) -> None: ...
