"""What can be asked, and what is wrong with it by field and range: the same for both services."""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet_runtime.engine.base import OPTIONS, EngineRequest
from moefleet_runtime.serving.asking import Asked
from moefleet_runtime.serving.inference import _Wanted
from moefleet_runtime_rig.answering import AnsweringReplica
from smg_grpc_proto.generated import trtllm_service_pb2 as trt


@pytest.fixture(scope="module")
def replica() -> AnsweringReplica:
    return AnsweringReplica()


NAN = math.nan
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"sampling": {"min_p": -0.1}}, "sampling.min_p", "0 to 1"),
    ({"sampling": {"min_p": 1.1}}, "sampling.min_p", "0 to 1"),
    ({"sampling": {"min_p": NAN}}, "sampling.min_p", "0 to 1"),
    ({"sampling": {"repetition_penalty": 0.0}}, "sampling.repetition_penalty", "more than 0, at most 10"),
    ({"sampling": {"repetition_penalty": 11.0}}, "sampling.repetition_penalty", "more than 0, at most 10"),
    ({"sampling": {"presence_penalty": 2.1}}, "sampling.presence_penalty", "-2 to 2"),
    ({"sampling": {"presence_penalty": NAN}}, "sampling.presence_penalty", "-2 to 2"),
    ({"sampling": {"frequency_penalty": -2.1}}, "sampling.frequency_penalty", "-2 to 2"),
    ({"sampling": {"frequency_penalty": math.inf}}, "sampling.frequency_penalty", "-2 to 2"),
    ({"sampling": {"logit_bias": {7: 101.0}}}, "sampling.logit_bias[7]", "-100 to 100"),
    ({"sampling": {"logit_bias": {7: NAN}}}, "sampling.logit_bias[7]", "-100 to 100"),
    ({"sampling": {"logit_bias": {400: 1.0}}}, "sampling.logit_bias[400]", "0 to 399"),
    ({"sampling": {"logit_bias": dict.fromkeys(range(1025), 1.0)}}, "sampling.logit_bias", "at most 1024"),
    ({"stopping": {"stop": [""]}}, "stopping.stop[0]", "1 to 256"),
    ({"stopping": {"stop": ["a", "x" * 257]}}, "stopping.stop[1]", "1 to 256"),
    ({"stopping": {"stop": ["x"] * 17}}, "stopping.stop", "at most 16"),
    ({"stopping": {"min_tokens": 9, "max_tokens": 8}}, "stopping.min_tokens", "max_tokens, which is 8"),
    ({"stopping": {"stop_token_ids": [400]}}, "stopping.stop_token_ids[0]", "0 to 399"),
    ({"logprobs": 21}, "logprobs", "0 to 20"),
    ({"priority": 1001}, "priority", "-1000 to 1000"),
    ({"priority": -1001}, "priority", "-1000 to 1000"),
    ({"guide": {"regex": ""}}, "guide.regex", "1 to 65536"),
    ({"guide": {"regex": "x" * 65537}}, "guide.regex", "1 to 65536"),
    ({"guide": {"json_schema": "{"}}, "guide.json_schema", "is no JSON"),
    ({"guide": {"json_schema": "[1]"}}, "guide.json_schema", "wanted an object"),
    ({"guide": {"json_schema": "[" * 60000}}, "guide.json_schema", "nested too deeply"),
    (
        {"guide": {"json_schema": '{"a":' * 64 + "{}" + "}" * 64}},
        "guide.json_schema",
        "65 levels; at most 64",
    ),
    ({"guide": {"json_schema": '{"a":' + "[" * 64 + "]" * 64 + "}"}}, "guide.json_schema", "65 levels"),
    ({"guide": {"regex": "(" * 65 + "a" + ")" * 65}}, "guide.regex", "65 levels; at most 64"),
    # The rest of the answer would be swallowed.
    ({"resume": {"token_ids": [5, 6], "text_characters": 513}}, "resume.text_characters", "at most 512"),
    ({"resume": {"text_characters": 1}}, "resume.text_characters", "at most 0"),
]


@pytest.mark.parametrize(("fields", "field", "says"), BAD, ids=[f"{f} {s}" for _, f, s in BAD])
def test_a_bad_value_is_told_with_its_field_and_range(
    replica: AnsweringReplica, fields: dict[str, Any], field: str, says: str
) -> None:
    before = len(replica.engine.requests)
    request = pb.GenerateRequest(**{"model": "m", "token_ids": pb.TokenIds(ids=[5, 6]), **fields})
    answer = replica.ask(replica.inference, request)
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert answer.fields == [field]
    assert says in answer.said
    assert len(replica.engine.requests) == before


@pytest.mark.parametrize(
    "guide",
    [
        {"json_schema": '{"a":' * 63 + "{}" + "}" * 63},
        {"regex": "(" * 64 + "a" + ")" * 64},
        {"regex": "(a)" * 1000},
        {"regex": "[(((]" * 100},
        {"regex": r"\(" * 100},
    ],
    ids=["schema", "groups", "one after the other", "in a class", "escaped"],
)
def test_a_guide_may_be_as_deep_as_the_limit(replica: AnsweringReplica, guide: dict[str, Any]) -> None:
    request = pb.GenerateRequest(
        model="m", token_ids=pb.TokenIds(ids=[5]), stopping=pb.Stopping(max_tokens=2), guide=guide
    )
    assert replica.ask(replica.inference, request).code is grpc.StatusCode.OK


TRTLLM_BAD: list[tuple[dict[str, Any], str]] = [
    ({"sampling_config": {"min_p": 2.0}}, "sampling_config.min_p"),
    ({"sampling_config": {"repetition_penalty": -1.0}}, "sampling_config.repetition_penalty"),
    ({"sampling_config": {"presence_penalty": 9.0}}, "sampling_config.presence_penalty"),
    ({"sampling_config": {"frequency_penalty": NAN}}, "sampling_config.frequency_penalty"),
    ({"sampling_config": {"min_tokens": 9}}, "sampling_config.min_tokens"),
    ({"sampling_config": {"prompt_ignore_length": 1}}, "sampling_config.prompt_ignore_length"),
    ({"output_config": {"logprobs": 21}}, "output_config.logprobs"),
    ({"output_config": {"prompt_logprobs": 1}}, "output_config.prompt_logprobs"),
    ({"stop": ["", "b"]}, "stop[0]"),
    ({"guided_decoding": {"guide_type": "GUIDE_TYPE_REGEX"}}, "guided_decoding"),
    (
        {"guided_decoding": {"guide_type": "GUIDE_TYPE_EBNF_GRAMMAR", "guide": "x"}},
        "guided_decoding.guide_type",
    ),
    ({"guided_decoding": {"guide_type": "GUIDE_TYPE_JSON_SCHEMA", "guide": "{"}}, "guided_decoding"),
]


@pytest.mark.parametrize(("fields", "field"), TRTLLM_BAD, ids=[f for _, f in TRTLLM_BAD])
def test_the_other_service_names_its_own_fields(
    replica: AnsweringReplica, fields: dict[str, Any], field: str
) -> None:
    tokens = trt.TokenizedInput(input_token_ids=[5, 6])
    request = trt.GenerateRequest(tokenized=tokens, max_tokens=8, **fields)
    answer = replica.ask(replica.trtllm, request)
    assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


def test_all_that_can_be_asked_reaches_the_engine_the_same_through_both(replica: AnsweringReplica) -> None:
    ours = pb.GenerateRequest(
        model="m",
        token_ids=pb.TokenIds(ids=[5, 6]),
        sampling=pb.Sampling(
            temperature=0.5,
            top_k=4,
            top_p=0.5,
            seed=9,
            min_p=0.25,
            repetition_penalty=1.5,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
        ),
        stopping=pb.Stopping(max_tokens=8, stop_token_ids=[7], ignore_eos=True, min_tokens=2),
        cache_salt="3",
        logprobs=2,
        guide=pb.Guide(regex="a+"),
    )
    theirs = trt.GenerateRequest(
        tokenized=trt.TokenizedInput(input_token_ids=[5, 6]),
        max_tokens=8,
        sampling_config=trt.SamplingConfig(
            temperature=0.5,
            top_k=4,
            top_p=0.5,
            seed=9,
            min_p=0.25,
            repetition_penalty=1.5,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            min_tokens=2,
        ),
        output_config=trt.OutputConfig(logprobs=2),
        stop_token_ids=[7],
        ignore_eos=True,
        cache_salt_id=3,
        guided_decoding=trt.GuidedDecodingParams(guide_type="GUIDE_TYPE_REGEX", guide="a+"),
        streaming=True,
    )
    first, second = replica.ask(replica.inference, ours), replica.ask(replica.trtllm, theirs)
    assert (first.code, second.code) == (grpc.StatusCode.OK, grpc.StatusCode.OK), (first.said, second.said)
    a, b = replica.engine.requests[-2:]
    for name in EngineRequest.__slots__:
        if name != "request_id":
            assert getattr(a, name) == getattr(b, name), name
    off = EngineRequest("r", (1,), 1)
    only_ours = {"logit_bias", "priority"}
    assert {n for n in OPTIONS if getattr(a, n) == getattr(off, n)} == only_ours
    assert [p.token_id for p in first.written[-1].logprobs] == list(first.written[-1].token_ids)
    assert len(second.written[-1].complete.logprobs) == len(second.written[-1].complete.output_token_ids) == 8
    ours.sampling.logit_bias[4] = 1.5
    ours.priority = -3
    assert replica.ask(replica.inference, ours).code is grpc.StatusCode.OK
    assert (replica.engine.requests[-1].logit_bias, replica.engine.requests[-1].priority) == (((4, 1.5),), -3)


@pytest.mark.parametrize("part", ["sampling", "stopping", "guide", "resume"])
def test_an_empty_message_asks_for_what_an_absent_one_does(part: str) -> None:
    absent = pb.GenerateRequest(model="chat-model", token_ids=pb.TokenIds(ids=[1, 2]))
    empty = pb.GenerateRequest()
    empty.CopyFrom(absent)
    getattr(empty, part).SetInParent()
    assert empty.HasField(part)
    assert asked_of(empty) == asked_of(absent) == (Asked(), None, 0)


def asked_of(request: pb.GenerateRequest) -> tuple[Asked, int | None, int]:
    wanted = _Wanted(request)
    return wanted.asked, wanted.max_tokens, wanted.text_characters


def test_what_an_engine_lacks_is_refused_by_name_and_what_is_off_passes() -> None:
    bare = AnsweringReplica(frozenset())
    request = pb.GenerateRequest(
        model="m",
        token_ids=pb.TokenIds(ids=[5]),
        sampling=pb.Sampling(min_p=0.1, repetition_penalty=1.1, presence_penalty=1, frequency_penalty=1),
        stopping=pb.Stopping(max_tokens=8, min_tokens=1, stop=["x"]),
        guide=pb.Guide(json_object=True),
        logprobs=0,
        priority=1,
    )
    request.sampling.logit_bias[4] = 1.0
    answer = bare.ask(bare.inference, request)
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(answer.fields) == [
        "guide.json_object",
        "logprobs",
        "priority",
        "sampling.frequency_penalty",
        "sampling.logit_bias",
        "sampling.min_p",
        "sampling.presence_penalty",
        "sampling.repetition_penalty",
        "stopping.min_tokens",
    ]
    off = pb.GenerateRequest(
        model="m",
        token_ids=pb.TokenIds(ids=[5]),
        sampling=pb.Sampling(min_p=0.0, repetition_penalty=1.0),
        stopping=pb.Stopping(max_tokens=8, stop=["x"]),
        guide=pb.Guide(json_object=False),
    )
    assert bare.ask(bare.inference, off).code is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("header", "seed"), [("7", 7), ("0", 0), (str((1 << 64) - 1), (1 << 64) - 1), (None, 9)]
)
def test_a_seed_that_the_openai_edge_names_wins(
    replica: AnsweringReplica, header: str | None, seed: int
) -> None:
    request = trt.GenerateRequest(
        tokenized=trt.TokenizedInput(input_token_ids=[5, 6]),
        max_tokens=2,
        sampling_config=trt.SamplingConfig(temperature=1.0, seed=9),
    )
    metadata = (("x-moefleet-seed", header),) if header is not None else ()
    assert replica.ask(replica.trtllm, request, metadata).code is grpc.StatusCode.OK
    assert replica.engine.requests[-1].seed == seed


@pytest.mark.parametrize("header", ["", "-1", "1.5", "x", str(1 << 64), "9" * 5000])
def test_a_seed_that_is_none_is_refused(replica: AnsweringReplica, header: str) -> None:
    request = trt.GenerateRequest(tokenized=trt.TokenizedInput(input_token_ids=[5]), max_tokens=2)
    answer = replica.ask(replica.trtllm, request, (("x-moefleet-seed", header),))
    assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["x-moefleet-seed"])
