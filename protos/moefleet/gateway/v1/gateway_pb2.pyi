from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EndpointState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENDPOINT_STATE_UNSPECIFIED: _ClassVar[EndpointState]
    ENDPOINT_STATE_REGISTERED: _ClassVar[EndpointState]
    ENDPOINT_STATE_WITHDRAWN: _ClassVar[EndpointState]
ENDPOINT_STATE_UNSPECIFIED: EndpointState
ENDPOINT_STATE_REGISTERED: EndpointState
ENDPOINT_STATE_WITHDRAWN: EndpointState

class FleetDemand(_message.Message):
    __slots__ = ("namespace", "fleet", "fleet_uid", "arrivals", "retries", "shed", "held", "prompt_tokens", "predicted_cached_tokens", "predicted_output_tokens", "served_requests", "served_prompt_tokens", "served_cached_tokens", "served_output_tokens", "failed", "queue_requests", "queue_prompt_tokens", "queue_oldest_s", "ttft_counts", "tpot_counts", "lengths", "in_flight")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FLEET_FIELD_NUMBER: _ClassVar[int]
    FLEET_UID_FIELD_NUMBER: _ClassVar[int]
    ARRIVALS_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    SHED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SERVED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    SERVED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SERVED_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SERVED_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_OLDEST_S_FIELD_NUMBER: _ClassVar[int]
    TTFT_COUNTS_FIELD_NUMBER: _ClassVar[int]
    TPOT_COUNTS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    fleet: str
    fleet_uid: str
    arrivals: int
    retries: int
    shed: int
    held: int
    prompt_tokens: int
    predicted_cached_tokens: int
    predicted_output_tokens: int
    served_requests: int
    served_prompt_tokens: int
    served_cached_tokens: int
    served_output_tokens: int
    failed: int
    queue_requests: int
    queue_prompt_tokens: int
    queue_oldest_s: float
    ttft_counts: _containers.RepeatedScalarFieldContainer[int]
    tpot_counts: _containers.RepeatedScalarFieldContainer[int]
    lengths: _containers.RepeatedCompositeFieldContainer[LengthBucket]
    in_flight: int
    def __init__(self, namespace: _Optional[str] = ..., fleet: _Optional[str] = ..., fleet_uid: _Optional[str] = ..., arrivals: _Optional[int] = ..., retries: _Optional[int] = ..., shed: _Optional[int] = ..., held: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., predicted_cached_tokens: _Optional[int] = ..., predicted_output_tokens: _Optional[int] = ..., served_requests: _Optional[int] = ..., served_prompt_tokens: _Optional[int] = ..., served_cached_tokens: _Optional[int] = ..., served_output_tokens: _Optional[int] = ..., failed: _Optional[int] = ..., queue_requests: _Optional[int] = ..., queue_prompt_tokens: _Optional[int] = ..., queue_oldest_s: _Optional[float] = ..., ttft_counts: _Optional[_Iterable[int]] = ..., tpot_counts: _Optional[_Iterable[int]] = ..., lengths: _Optional[_Iterable[_Union[LengthBucket, _Mapping]]] = ..., in_flight: _Optional[int] = ...) -> None: ...

class LengthBucket(_message.Message):
    __slots__ = ("prompt_log2", "output_log2", "count")
    PROMPT_LOG2_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_LOG2_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    prompt_log2: int
    output_log2: int
    count: int
    def __init__(self, prompt_log2: _Optional[int] = ..., output_log2: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class DemandSample(_message.Message):
    __slots__ = ("gateway_uid", "incarnation", "seq", "time_s", "endpoints_version_applied", "fleets", "ttft_bounds_s", "tpot_bounds_s")
    GATEWAY_UID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_VERSION_APPLIED_FIELD_NUMBER: _ClassVar[int]
    FLEETS_FIELD_NUMBER: _ClassVar[int]
    TTFT_BOUNDS_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_BOUNDS_S_FIELD_NUMBER: _ClassVar[int]
    gateway_uid: str
    incarnation: str
    seq: int
    time_s: float
    endpoints_version_applied: int
    fleets: _containers.RepeatedCompositeFieldContainer[FleetDemand]
    ttft_bounds_s: _containers.RepeatedScalarFieldContainer[float]
    tpot_bounds_s: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, gateway_uid: _Optional[str] = ..., incarnation: _Optional[str] = ..., seq: _Optional[int] = ..., time_s: _Optional[float] = ..., endpoints_version_applied: _Optional[int] = ..., fleets: _Optional[_Iterable[_Union[FleetDemand, _Mapping]]] = ..., ttft_bounds_s: _Optional[_Iterable[float]] = ..., tpot_bounds_s: _Optional[_Iterable[float]] = ...) -> None: ...

class WatchDemandRequest(_message.Message):
    __slots__ = ("incarnation", "since_seq")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SINCE_SEQ_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    since_seq: int
    def __init__(self, incarnation: _Optional[str] = ..., since_seq: _Optional[int] = ...) -> None: ...

class WatchDemandResponse(_message.Message):
    __slots__ = ("sample",)
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    sample: DemandSample
    def __init__(self, sample: _Optional[_Union[DemandSample, _Mapping]] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("pod_uid", "state", "in_flight")
    POD_UID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    pod_uid: str
    state: EndpointState
    in_flight: int
    def __init__(self, pod_uid: _Optional[str] = ..., state: _Optional[_Union[EndpointState, str]] = ..., in_flight: _Optional[int] = ...) -> None: ...

class WatchEndpointsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchEndpointsResponse(_message.Message):
    __slots__ = ("gateway_uid", "incarnation", "version", "full", "endpoints", "gone_pod_uids")
    GATEWAY_UID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    GONE_POD_UIDS_FIELD_NUMBER: _ClassVar[int]
    gateway_uid: str
    incarnation: str
    version: int
    full: bool
    endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    gone_pod_uids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, gateway_uid: _Optional[str] = ..., incarnation: _Optional[str] = ..., version: _Optional[int] = ..., full: bool = ..., endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., gone_pod_uids: _Optional[_Iterable[str]] = ...) -> None: ...
