"""moefleet.inference.v1.InferenceService of one replica."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Final

import grpc
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet.inference.v1 import inference_pb2_grpc as services

from moefleet_runtime.engine.base import EngineRequest, Finish, Tokenizer
from moefleet_runtime.serving import checks
from moefleet_runtime.serving.admission import Admission
from moefleet_runtime.serving.generation import EndedError, Generation
from moefleet_runtime.serving.problems import (
    Context,
    Problem,
    Violation,
    answer_with,
    invalid,
    refusal,
)

# Longer texts are tokenised in a thread, so that running streams do not wait for them (about 2 ms at this size).
INLINE_TEXT_CHARACTERS: Final = 8192

_FINISH = {
    Finish.STOP: pb.FINISH_REASON_STOP,
    Finish.LENGTH: pb.FINISH_REASON_LENGTH,
    Finish.CANCELLED: pb.FINISH_REASON_CANCELLED,
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
        self, served: Served, admission: Admission, generation: Generation, tokenizing: Executor
    ) -> None:
        self._served = served
        self._admission = admission
        self._generation = generation
        self._tokenizing = tokenizing

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
            await answer_with(context, problem)
        try:
            engine_request = await self._engine_request(request, wanted, limits, tokenizer)
            decoder = tokenizer.decoder()
            first = True
            async with aclosing(self._generation.run(guest, engine_request)) as pieces:
                async for piece in pieces:
                    text = decoder.push(piece.tokens)
                    response = pb.GenerateResponse(token_ids=piece.tokens, text=text)
                    if first:
                        await context.send_initial_metadata((("x-moefleet-pod", self._served.pod_uid),))
                        response.request_id = guest.request_id
                        first = False
                    if piece.finish is not None:
                        response.text += decoder.finish()
                        response.finish_reason = _FINISH[piece.finish]
                        response.usage.prompt_tokens = piece.usage.prompt_tokens
                        response.usage.completion_tokens = piece.usage.completion_tokens
                        response.usage.cached_prompt_tokens = piece.usage.cached_tokens
                        context.set_trailing_metadata(piece.usage.trailers())
                    await context.write(response)
        except EndedError as ended:
            await answer_with(context, ended.problem, ended.usage.trailers())
        except Problem as problem:
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
                f"model {model!r} is not served here; this replica serves {' = '.join(self._served.names)}",
                metadata={"models": ",".join(self._served.names)},
            )

    def _ready(self) -> tuple[checks.ModelLimits, Tokenizer]:
        served = self._served
        if served.limits is None or served.tokenizer is None:
            raise refusal("not-serving", "this replica has not loaded its model yet")
        return served.limits, served.tokenizer

    async def _engine_request(
        self, request: pb.GenerateRequest, wanted: _Wanted, limits: checks.ModelLimits, tokenizer: Tokenizer
    ) -> EngineRequest:
        """The text becomes tokens here, after admission: a queue of long texts is bounded by the places inside."""
        if request.WhichOneof("input") == "token_ids":
            prompt = tuple(request.token_ids.ids)
        else:
            prompt = tuple(await self._encode(tokenizer, request.prompt))
            if wrong := checks.check_prompt(limits, prompt, "prompt"):
                raise invalid(*wrong)
        max_tokens, wrong = _max_tokens(limits, len(prompt), wanted)
        if wrong:
            raise invalid(*wrong)
        sampling, stopping = request.sampling, request.stopping
        return EngineRequest(
            request_id=self._generation.new_request_id(),
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=wanted.top_p,
            seed=sampling.seed if sampling.HasField("seed") else None,
            stop_token_ids=frozenset(stopping.stop_token_ids),
            ignore_eos=stopping.ignore_eos,
            cache_salt=request.cache_salt,
        )

    async def _encode(self, tokenizer: Tokenizer, text: str) -> list[int]:
        if len(text) <= INLINE_TEXT_CHARACTERS:
            return tokenizer.encode(text)
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, tokenizer.encode, text)


class _Wanted:
    """What protobuf's presence says, read once."""

    __slots__ = ("max_tokens", "top_p")

    def __init__(self, request: pb.GenerateRequest) -> None:
        self.max_tokens = request.stopping.max_tokens if request.stopping.HasField("max_tokens") else None
        self.top_p = request.sampling.top_p if request.sampling.HasField("top_p") else 1.0


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
    sampling, stopping = request.sampling, request.stopping
    wrong += checks.check_sampling(sampling.temperature, sampling.top_k, wanted.top_p, prefix="sampling")
    wrong += checks.check_stops(limits, stopping.stop_token_ids, "stopping.stop_token_ids")
    if wrong:
        raise invalid(*wrong)
    return wanted


def _max_tokens(
    limits: checks.ModelLimits, prompt_tokens: int, wanted: _Wanted
) -> tuple[int, list[Violation]]:
    return checks.max_tokens_for(limits, prompt_tokens, wanted.max_tokens, "stopping.max_tokens")
