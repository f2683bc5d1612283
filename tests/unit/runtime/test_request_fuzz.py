"""Whatever a client sends: an answer, or INVALID_ARGUMENT that names fields of the message. No crash, for any message at all."""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet_runtime_rig.answering import VOCABULARY, AnsweringReplica
from smg_grpc_proto.generated import trtllm_service_pb2 as trt


@pytest.fixture(scope="module")
def replica() -> AnsweringReplica:
    return AnsweringReplica()


_NUMBERS = st.one_of(st.floats(width=32), st.sampled_from([0.0, 0.5, 1.0, -1.0, 2.0, math.nan, math.inf]))
_TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["m", "{}", "[0-9]+", '{"type": "object"}', "[" * 3000, "x" * 300, "\ufffd", "\x00"]),
)


def _scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kinds = FieldDescriptor
    signed, unsigned = (
        {kinds.CPPTYPE_INT32: 31, kinds.CPPTYPE_INT64: 63},
        {kinds.CPPTYPE_UINT32: 32, kinds.CPPTYPE_UINT64: 64},
    )
    small = st.integers(0, 500)
    if field.cpp_type in signed:
        most = 1 << signed[field.cpp_type]
        return st.one_of(st.integers(-2, 500), st.integers(-most, most - 1))
    if field.cpp_type in unsigned:
        return st.one_of(small, st.integers(0, (1 << unsigned[field.cpp_type]) - 1))
    if field.cpp_type == kinds.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == kinds.CPPTYPE_ENUM:
        return st.sampled_from([v.number for v in field.enum_type.values])
    if field.cpp_type == kinds.CPPTYPE_STRING:
        return st.binary(max_size=8) if field.type == kinds.TYPE_BYTES else _TEXTS
    return _NUMBERS


@st.composite
def messages(draw: st.DrawFn, kind: Any) -> Any:
    """A message of this type with some of its fields set to anything, or what is left of one when bytes go astray."""
    message = draw(_filled(kind.DESCRIPTOR, kind))
    if draw(st.integers(0, 9)) == 0:
        data = bytearray(message.SerializeToString())
        for at, value in draw(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=5)):
            if data:
                data[at % len(data)] = value
        try:
            return kind.FromString(bytes(data))
        except Exception:
            # gRPC answers that one before any of our code runs.
            return message
    return message


@st.composite
def _filled(draw: st.DrawFn, descriptor: Descriptor, kind: Any) -> Any:
    message = kind()
    if not descriptor.fields:
        return message
    for field in draw(st.lists(st.sampled_from(list(descriptor.fields)), unique_by=lambda f: f.name)):
        many = field.is_repeated
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entries = st.dictionaries(
                _scalars(field.message_type.fields[0]), _scalars(field.message_type.fields[1]), max_size=4
            )
            getattr(message, field.name).update(draw(entries))
        elif field.message_type is not None:
            inner = field.message_type._concrete_class
            for _ in range(draw(st.integers(0, 2)) if many else 1):
                value = draw(_filled(field.message_type, inner))
                if many:
                    getattr(message, field.name).append(value)
                else:
                    getattr(message, field.name).CopyFrom(value)
        elif many:
            getattr(message, field.name).extend(draw(st.lists(_scalars(field), max_size=20)))
        else:
            setattr(message, field.name, draw(_scalars(field)))
    return message


def known_field(descriptor: Descriptor, path: str) -> bool:
    """`a.b[3]` names a field, or a oneof, of the message."""
    name, _, rest = path.partition(".")
    name = name.partition("[")[0]
    field = descriptor.fields_by_name.get(name)
    if field is None:
        return name in descriptor.oneofs_by_name and not rest
    return not rest or (field.message_type is not None and known_field(field.message_type, rest))


FUZZ = settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(request=messages(pb.GenerateRequest), addressed=st.booleans())
def test_any_request_is_answered_or_told_what_is_wrong_with_it(
    replica: AnsweringReplica, request: pb.GenerateRequest, addressed: bool
) -> None:
    if addressed:
        # Otherwise few would come as far as an answer.
        request.model = "m"
        request.token_ids.ids[:] = [5, 6]
        request.stopping.stop_token_ids[:] = [t % VOCABULARY for t in request.stopping.stop_token_ids]
    answer = replica.ask(replica.inference, request)
    match answer.code:
        case grpc.StatusCode.OK:
            last = answer.written[-1]
            tokens = [t for m in answer.written for t in m.token_ids]
            assert last.finish_reason in (pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP)
            assert last.usage.completion_tokens >= len(tokens)
            text = "".join(m.text for m in answer.written)
            if not request.stopping.min_tokens:
                assert not [s for s in request.stopping.stop if s in text]
        case grpc.StatusCode.INVALID_ARGUMENT:
            assert answer.fields
            assert all(known_field(pb.GenerateRequest.DESCRIPTOR, f) for f in answer.fields), answer.fields
        case other:
            assert other is grpc.StatusCode.NOT_FOUND
            assert request.model != "m"


@FUZZ
@given(request=messages(trt.GenerateRequest), filled=st.booleans())
def test_any_request_to_the_other_service_is_answered_or_told_what_is_wrong_with_it(
    replica: AnsweringReplica, request: Any, filled: bool
) -> None:
    if filled:
        request.max_tokens = 1 + request.max_tokens % 40
        request.tokenized.input_token_ids[:] = [5, 6]
        request.stop_token_ids[:] = [t % VOCABULARY for t in request.stop_token_ids]
    answer = replica.ask(replica.trtllm, request)
    if answer.code is grpc.StatusCode.OK:
        complete = answer.written[-1].complete
        assert complete.finish_reason in ("length", "stop")
        assert complete.completion_tokens >= len(complete.output_token_ids)
    else:
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
        assert answer.fields
        assert all(known_field(trt.GenerateRequest.DESCRIPTOR, f) for f in answer.fields), answer.fields
