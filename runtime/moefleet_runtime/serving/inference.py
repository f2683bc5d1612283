"""moefleet.inference.v1.InferenceService of one replica."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import grpc
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet.inference.v1 import inference_pb2_grpc as services

from moefleet_runtime.engine.base import EngineRequest, Finish, Guide, Tokenizer, TokenLogprob
from moefleet_runtime.serving import checks
from moefleet_runtime.serving.admission import Admission, Places
from moefleet_runtime.serving.asking import (
    Asked,
    check_asked,
    check_generated,
    check_min_tokens,
    check_resumed_text,
)
from moefleet_runtime.serving.generation import EndedError, Generation, Piece, Usage
from moefleet_runtime.serving.handover import MOVABLE, Handover, Sent, rest_of
from moefleet_runtime.serving.problems import (
    Context,
    Problem,
    Violation,
    answer_with,
    invalid,
    refusal,
)
from moefleet_runtime.serving.stopping import AnswerText

# Longer texts are tokenised in a thread, so that running streams do not wait for them (about 2 ms at this size).
INLINE_TEXT_CHARACTERS: Final = 8192
# Texts that wait to be counted. They wait for one thread, and so do prompts, which admission bounds.
MAX_COUNTS: Final = 64

_FINISH = {
    Finish.STOP: pb.FINISH_REASON_STOP,
    Finish.LENGTH: pb.FINISH_REASON_LENGTH,
    Finish.CANCELLED: pb.FINISH_REASON_CANCELLED,
}
# Fields of Asked by their names here.
_NAMES: Final = {
    "sampling": "sampling",
    "min_p": "sampling.min_p",
    "repetition_penalty": "sampling.repetition_penalty",
    "presence_penalty": "sampling.presence_penalty",
    "frequency_penalty": "sampling.frequency_penalty",
    "logit_bias": "sampling.logit_bias",
    "stop": "stopping.stop",
    "stop_token_ids": "stopping.stop_token_ids",
    "min_tokens": "stopping.min_tokens",
    "generated": "resume.token_ids",
}


class Served:
    """What is served here. Complete once the engine has started; before that, nothing is admitted."""

    def __init__(self, *, names: tuple[str, ...], fleet: str, engine: str, pod_uid: str) -> None:
        self.names = names
        self.fleet = fleet
        self.engine = engine
        self.pod_uid = pod_uid
        self.limits: checks.ModelLimits | None = None
        self.tokenizer: Tokenizer | None = None
        # The checkpoint; None where an engine does without (Simulated).
        self.folder: Path | None = None

    @property
    def name(self) -> str:
        return self.names[0]

    def message(self) -> pb.Model:
        limits = self.limits
        return pb.Model(
            name=self.name,
            fleet=self.fleet,
            engine=self.engine,
            context_length=limits.context_length if limits else 0,
            vocabulary_size=limits.vocabulary_size if limits else 0,
        )


class InferenceService(services.InferenceServiceServicer):
    def __init__(
        self,
        served: Served,
        admission: Admission,
        generation: Generation,
        tokenizing: Executor,
        handover: Handover | None = None,
    ) -> None:
        self._served = served
        self._admission = admission
        self._generation = generation
        self._tokenizing = tokenizing
        self._handover = handover
        self._counting = Places(MAX_COUNTS, "CountTokens calls")

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """Writes instead of yielding: a cancelled call then raises here, and frees the engine at once; a generator would
        wait in its yield for the garbage collector."""
        try:
            self._admission.check(context.invocation_metadata() or ())
            self._check_model(request.model)
            limits, tokenizer = self._ready()
            wanted = _check(request, limits)
            guest = self._admission.enter(request.request_id or self._generation.new_request_id())
        except Problem as problem:
            self._generation.log.refused(time.monotonic(), request.request_id, problem)
            await answer_with(context, problem)
        sent = Sent()
        handover = self._handover
        guest.movable = handover is not None and handover.possible_for(context.invocation_metadata())
        guest.task = asyncio.current_task()
        first = True
        try:
            deadline_s = deadline_of(context)
            engine_request = await self._engine_request(request, wanted, limits, tokenizer, deadline_s)
            asked = wanted.asked
            text = AnswerText(tokenizer.decoder(), asked.stop, asked.min_tokens)
            stop = text.resume(asked.generated, wanted.text_characters)
            over = Finish.STOP if stop is not None else asked.over(limits, engine_request.max_tokens)
            if over is not None:
                answered = _answered(text, over, stop, engine_request)
            else:
                answered = self._generation.run(guest, engine_request, text, wanted.names)
            async with aclosing(answered) as pieces:
                async for piece in pieces:
                    response = pb.GenerateResponse(token_ids=piece.tokens, text=piece.text)
                    if piece.logprobs:
                        response.logprobs.extend(_logprobs(piece.tokens, piece.logprobs))
                    if first:
                        await context.send_initial_metadata((("x-moefleet-pod", self._served.pod_uid),))
                        response.request_id = guest.request_id
                        first = False
                    if piece.finish is not None:
                        _end(response, piece, asked, limits)
                        context.set_trailing_metadata(piece.usage.trailers())
                    guest.writing_since_s = time.monotonic()
                    await context.write(response)
                    guest.writing_since_s = None
                    if guest.movable:
                        sent.add(piece)
        except EndedError as ended:
            if handover is not None and guest.movable and ended.problem.reason in MOVABLE:
                rest = rest_of(request, guest.request_id, sent)
                if await handover.relay(rest, ended.problem, context, self._served.pod_uid, began=not first):
                    return
                self._admission.cut_total += ended.problem.reason == "STREAM_CUT"
            await answer_with(context, ended.problem, ended.usage.trailers())
        except Problem as problem:
            self._generation.log.refused(time.monotonic(), guest.request_id, problem)
            await answer_with(context, problem)
        finally:
            self._admission.leave(guest)

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        try:
            self._admission.check_address(context.invocation_metadata() or ())
            self._check_model(request.model)
            limits, tokenizer = self._ready()
            if not request.text:
                return pb.CountTokensResponse(tokens=0)
            if wrong := checks.check_text(limits, request.text, "text"):
                raise invalid(*wrong)
            with self._counting.one():
                return pb.CountTokensResponse(tokens=len(await self._encode(tokenizer, request.text)))
        except Problem as problem:
            await answer_with(context, problem)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        try:
            self._admission.check_address(context.invocation_metadata() or ())
            self._check_model(request.model)
            self._ready()
        except Problem as problem:
            await answer_with(context, problem)
        return pb.GetModelResponse(model=self._served.message())

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._served.message()])

    def _check_model(self, model: str) -> None:
        if not model:
            raise invalid(Violation("model", f"is empty; this replica serves {self._served.name}"))
        if model not in self._served.names:
            raise Problem(
                grpc.StatusCode.NOT_FOUND,
                "MODEL_NOT_FOUND",
                f"model {model[: checks.MAX_MODEL_CHARACTERS]!r} is not served here;"
                f" this replica serves {' = '.join(self._served.names)}",
                metadata={"models": ",".join(self._served.names)},
            )

    def _ready(self) -> tuple[checks.ModelLimits, Tokenizer]:
        served = self._served
        if served.limits is None or served.tokenizer is None:
            raise refusal("not-serving", "this replica has not loaded its model yet")
        return served.limits, served.tokenizer

    async def _engine_request(
        self,
        request: pb.GenerateRequest,
        wanted: _Wanted,
        limits: checks.ModelLimits,
        tokenizer: Tokenizer,
        deadline_s: float | None,
    ) -> EngineRequest:
        """The text becomes tokens here, after admission: a queue of long texts is bounded by the places inside."""
        if request.WhichOneof("input") == "token_ids":
            prompt = tuple(request.token_ids.ids)
        else:
            prompt = tuple(await self._encode(tokenizer, request.prompt))
            if wrong := checks.check_prompt(limits, prompt, "prompt"):
                raise invalid(*wrong)
        max_tokens, wrong = _max_tokens(limits, len(prompt), wanted)
        if not wrong:
            wrong += check_min_tokens(wanted.asked, max_tokens, _NAMES["min_tokens"])
            wrong += check_generated(wanted.asked, max_tokens, _NAMES["generated"])
        if wrong:
            raise invalid(*wrong)
        return wanted.asked.request(
            self._generation.new_request_id(),
            prompt,
            max_tokens,
            cache_salt=request.cache_salt,
            deadline_s=deadline_s,
        )

    async def _encode(self, tokenizer: Tokenizer, text: str) -> list[int]:
        if len(text) <= INLINE_TEXT_CHARACTERS:
            return tokenizer.encode(text)
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, tokenizer.encode, text)


class _Wanted:
    """The request in our own words, read once."""

    __slots__ = ("asked", "max_tokens", "names", "text_characters")

    def __init__(self, request: pb.GenerateRequest) -> None:
        # What the request has not is not looked at: each look makes an empty message, and most requests have little.
        given: dict[str, Any] = {}
        self.max_tokens, self.names, self.text_characters = None, _NAMES, 0
        if request.HasField("stopping"):
            stopping = request.stopping
            if stopping.HasField("max_tokens"):
                self.max_tokens = stopping.max_tokens
            given["stop_token_ids"] = tuple(stopping.stop_token_ids)
            given["stop"] = tuple(stopping.stop)
            given["ignore_eos"] = stopping.ignore_eos
            given["min_tokens"] = stopping.min_tokens
        if request.HasField("sampling"):
            given |= _sampling(request.sampling)
        if request.HasField("guide"):
            form = request.guide.WhichOneof("form")
            if form is not None:
                self.names = {**_NAMES, "guide": f"guide.{form}"}
            given["guide"] = _guide(request.guide)
        if request.HasField("resume"):
            given["generated"] = tuple(request.resume.token_ids)
            self.text_characters = request.resume.text_characters
        if request.HasField("logprobs"):
            given["logprobs"] = request.logprobs
        self.asked = Asked(priority=request.priority, **given)


def _sampling(sampling: pb.Sampling) -> dict[str, Any]:
    given: dict[str, Any] = {
        name: getattr(sampling, name)
        for name in ("temperature", "top_k", "min_p", "presence_penalty", "frequency_penalty")
    }
    # Absent is not their zero.
    given |= {
        name: getattr(sampling, name)
        for name in ("top_p", "seed", "repetition_penalty")
        if sampling.HasField(name)
    }
    given["logit_bias"] = tuple(sampling.logit_bias.items())
    return given


def _guide(guide: pb.Guide) -> Guide | None:
    match guide.WhichOneof("form"):
        case "json_schema":
            return Guide("json_schema", guide.json_schema)
        case "regex":
            return Guide("regex", guide.regex)
        case "json_object":
            return Guide("json_object") if guide.json_object else None
        case _:
            return None


def _check(request: pb.GenerateRequest, limits: checks.ModelLimits) -> _Wanted:
    """Everything that can be wrong at once; raises one INVALID_ARGUMENT with a violation for each."""
    wanted = _Wanted(request)
    wrong = checks.check_names(request.request_id, request.cache_salt)
    match request.WhichOneof("input"):
        case "prompt":
            wrong += checks.check_text(limits, request.prompt, "prompt")
            # At least one token: what is wrong for that is wrong for every prompt.
            wrong += _max_tokens(limits, 1, wanted)[1]
        case "token_ids":
            ids = request.token_ids.ids
            in_prompt = checks.check_prompt(limits, ids, "token_ids.ids")
            wrong += in_prompt
            if not in_prompt:
                wrong += _max_tokens(limits, len(ids), wanted)[1]
        case _:
            wrong.append(Violation("input", "is missing; give prompt or token_ids"))
    wrong += check_asked(wanted.asked, limits, wanted.names)
    wrong += check_resumed_text(wanted.asked, wanted.text_characters, "resume.text_characters")
    if wrong:
        raise invalid(*wrong)
    return wanted


def _max_tokens(
    limits: checks.ModelLimits, prompt_tokens: int, wanted: _Wanted
) -> tuple[int, list[Violation]]:
    return checks.max_tokens_for(limits, prompt_tokens, wanted.max_tokens, "stopping.max_tokens")


def deadline_of(context: Context) -> float | None:
    """The call's own deadline as time.monotonic(), None without one."""
    left_s = context.time_remaining()
    return None if left_s is None else time.monotonic() + float(left_s)


async def _answered(
    text: AnswerText, finish: Finish, stop: str | None, request: EngineRequest
) -> AsyncGenerator[Piece, None]:
    """The last piece of an answer that was over when it broke off: the engine has nothing to do."""
    used = Usage(len(request.prompt), len(request.generated), 0)
    left = "" if stop is not None else text.push((), last=True).text
    yield Piece([], used, finish, left, stop=stop)


def _logprobs(tokens: Sequence[int], logprobs: Sequence[TokenLogprob]) -> list[pb.TokenLogprob]:
    return [
        pb.TokenLogprob(
            token_id=token,
            logprob=one.logprob,
            top=[pb.Logprob(token_id=t, logprob=value) for t, value in one.top],
        )
        for token, one in zip(tokens, logprobs, strict=True)
    ]


def _end(response: pb.GenerateResponse, piece: Piece, asked: Asked, limits: checks.ModelLimits) -> None:
    assert piece.finish is not None
    response.finish_reason = _FINISH[piece.finish]
    response.usage.prompt_tokens = piece.usage.prompt_tokens
    response.usage.completion_tokens = piece.usage.completion_tokens
    response.usage.cached_prompt_tokens = piece.usage.cached_tokens
    if piece.stop is not None:
        response.stop = piece.stop
        return
    last = piece.tokens[-1:] or asked.generated[-1:]
    if piece.finish is Finish.STOP and last and asked.ending_token(limits, last[0]):
        response.stop_token_id = last[0]
