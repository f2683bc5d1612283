"""trtllm.TrtllmService: token ids in and out, as `trtllm-serve --grpc` speaks, so that gateways made for it find it here.

What the engines behind our protocol do not do (beams, grammars, log-probabilities of the prompt, ...) is refused by name: an
answer that silently left a constraint out would be wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import grpc
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import trtllm_service_pb2 as pb
from smg_grpc_proto.generated import trtllm_service_pb2_grpc as services

from moefleet_runtime.engine.base import EngineInfo, Finish, Guide, TokenLogprob
from moefleet_runtime.life import Life
from moefleet_runtime.serving import checks
from moefleet_runtime.serving.admission import Admission, Places
from moefleet_runtime.serving.asking import Asked, check_asked, check_min_tokens
from moefleet_runtime.serving.generation import EndedError, Generation, Piece
from moefleet_runtime.serving.inference import Served, deadline_of
from moefleet_runtime.serving.problems import (
    Context,
    Problem,
    Violation,
    answer_with,
    invalid,
    refusal,
    unimplemented,
)
from moefleet_runtime.serving.stopping import AnswerText
from moefleet_runtime.serving.tokenizer_bundle import Bundle, NoTokenizerError, make_bundle

# From the gateway's OpenAI edge: max_tokens is not the client's word, so there is none (0015).
OPEN_ENDED_HEADER: Final = "x-moefleet-open-ended"
# From there too: the client's seed, for which SMG has no place. Decimal, of 64 bits.
SEED_HEADER: Final = "x-moefleet-seed"
MAX_SEED_DIGITS: Final = 20
# Each of them holds a few megabytes on their way; gateways ask once each.
MAX_BUNDLES: Final = 32
_FINISH = {Finish.STOP: "stop", Finish.LENGTH: "length", Finish.CANCELLED: "cancelled"}


class TrtllmService(services.TrtllmServiceServicer):  # type: ignore[misc, unused-ignore]
    def __init__(
        self, served: Served, admission: Admission, generation: Generation, state: ReplicaView
    ) -> None:
        self._served = served
        self._admission = admission
        self._generation = generation
        self._state = state
        self._bundle: Bundle | None = None
        self._bundles = Places(MAX_BUNDLES, "GetTokenizer calls")

    async def Generate(self, request: Any, context: Context) -> None:
        """Writes instead of yielding, as InferenceService does."""
        try:
            self._admission.check(context.invocation_metadata() or ())
            if self._served.limits is None:
                raise refusal("not-serving", "this replica has not loaded its model yet")
            limits = self._served.limits
            metadata = dict(context.invocation_metadata() or ())
            _read_seed(request, metadata)
            open_ended = metadata.get(OPEN_ENDED_HEADER) == "1"
            asked, max_tokens = _asked(request, limits, None if open_ended else request.max_tokens)
            engine_request = asked.request(
                self._generation.new_request_id(),
                tuple(request.tokenized.input_token_ids),
                max_tokens,
                cache_salt=str(request.cache_salt_id) if request.HasField("cache_salt_id") else "",
                deadline_s=deadline_of(context),
            )
            # Only to find stop texts: the caller makes text by itself.
            text = None
            if asked.stop and self._served.tokenizer is not None:
                text = AnswerText(self._served.tokenizer.decoder(), asked.stop, asked.min_tokens)
            guest = self._admission.enter(request.request_id or self._generation.new_request_id())
        except Problem as problem:
            self._generation.log.refused(time.monotonic(), request.request_id, problem)
            await answer_with(context, problem)
        guest.task = asyncio.current_task()
        try:
            answer: list[int] = []
            logprobs: list[TokenLogprob] = []
            first = True
            async with aclosing(self._generation.run(guest, engine_request, text, _NAMES)) as pieces:
                async for piece in pieces:
                    if first:
                        await context.send_initial_metadata((("x-moefleet-pod", self._served.pod_uid),))
                        first = False
                    tokens, stop = piece.tokens, None
                    if piece.finish is Finish.STOP and piece.stop is None and tokens:
                        stop = tokens[-1] if asked.ending_token(limits, tokens[-1]) else None
                    if stop is not None and not request.include_stop_token_in_output:
                        tokens = tokens[:-1]
                    answer.extend(tokens)
                    logprobs.extend(piece.logprobs[: len(tokens)])
                    if piece.finish is Finish.CANCELLED:
                        aborted = Problem(grpc.StatusCode.CANCELLED, "ABORTED", "the request was aborted")
                        raise EndedError(aborted, piece.usage)
                    guest.writing_since_s = time.monotonic()
                    if request.streaming and tokens:
                        await context.write(_chunk(guest.request_id, tokens, piece))
                    if piece.finish is not None:
                        context.set_trailing_metadata(piece.usage.trailers())
                        await context.write(_complete(guest.request_id, answer, logprobs, piece, stop))
                    guest.writing_since_s = None
        except EndedError as ended:
            await answer_with(context, ended.problem, ended.usage.trailers())
        finally:
            self._admission.leave(guest)

    async def Abort(self, request: Any, context: Context) -> Any:
        guest = self._admission.find(request.request_id)
        if guest is None or guest.stream is None:
            return pb.AbortResponse(
                success=False,
                message=f"request {request.request_id[: checks.MAX_REQUEST_ID_CHARACTERS]!r} does not run here",
            )
        guest.stream.cancel()
        return pb.AbortResponse(success=True, message="aborted")

    async def HealthCheck(self, request: Any, context: Context) -> Any:
        life = self._state.life
        return pb.HealthCheckResponse(status="OK" if life.takes_work else life.explanation)

    async def GetModelInfo(self, request: Any, context: Context) -> Any:
        info = await self._info(context)
        limits = self._served.limits
        longest = limits.longest if limits else info.context_length
        return pb.GetModelInfoResponse(
            model_id=self._served.name,
            max_input_len=longest - 1,
            max_seq_len=longest,
            max_batch_size=info.max_batch_size,
            vocab_size=info.vocabulary_size,
            hidden_size=info.hidden_size,
            num_layers=info.layers,
            num_heads=info.heads,
        )

    async def GetServerInfo(self, request: Any, context: Context) -> Any:
        await self._info(context)
        return pb.GetServerInfoResponse(
            version=f"moefleet {_version()}",
            backend=self._served.engine,
            tensor_parallel_size=self._state.tensor_parallel,
            pipeline_parallel_size=1,
            context_parallel_size=1,
            world_size=self._state.tensor_parallel,
        )

    async def Embed(self, request: Any, context: Context) -> Any:
        await answer_with(context, unimplemented("trtllm.TrtllmService/Embed"))

    async def GetTokenizer(self, request: Any, context: Context) -> None:
        """The checkpoint's tokenizer and chat template, as a gateway's OpenAI edge asks for them."""
        await self._info(context)
        folder = self._served.folder
        if folder is None:
            await answer_with(
                context, _no_tokenizer("this replica has no checkpoint, its tokenizer is built in")
            )
        if self._bundle is None:
            try:
                self._bundle = await asyncio.to_thread(make_bundle, folder)
            except (NoTokenizerError, OSError) as error:
                await answer_with(context, _no_tokenizer(str(error)))
        try:
            with self._bundles.one():
                for data, sha256 in self._bundle.chunks():
                    await context.write(common_pb2.GetTokenizerChunk(data=data, sha256=sha256))
        except Problem as problem:
            await answer_with(context, problem)

    async def SubscribeKvEvents(self, request: Any, context: Context) -> Any:
        await answer_with(context, unimplemented("trtllm.TrtllmService/SubscribeKvEvents"))

    async def _info(self, context: Context) -> EngineInfo:
        info = self._state.info
        if info is None:
            await answer_with(
                context,
                refusal("not-serving", f"this replica does not serve: {self._state.life.explanation}"),
            )
        return info


@dataclass(slots=True)
class ReplicaView:
    """What the information calls tell; kept up to date by the replica."""

    life: Life
    tensor_parallel: int
    info: EngineInfo | None = None


def _no_tokenizer(why: str) -> Problem:
    return Problem(grpc.StatusCode.FAILED_PRECONDITION, "NO_TOKENIZER", f"no tokenizer to give: {why}")


# Fields of Asked by their names here.
_NAMES: Final = {
    "sampling": "sampling_config",
    "min_p": "sampling_config.min_p",
    "repetition_penalty": "sampling_config.repetition_penalty",
    "presence_penalty": "sampling_config.presence_penalty",
    "frequency_penalty": "sampling_config.frequency_penalty",
    "min_tokens": "sampling_config.min_tokens",
    "logprobs": "output_config.logprobs",
    "guide": "guided_decoding",
}


def _asked(request: Any, limits: checks.ModelLimits, wanted: int | None) -> tuple[Asked, int]:
    """And the most tokens of the answer; `wanted`: None leaves it to us. Raises one INVALID_ARGUMENT with a violation for
    everything that is wrong."""
    sampling, output = request.sampling_config, request.output_config
    # As TensorRT-LLM: greedy unless one of the three is given, and then temperature 1 unless given.
    sampled = any(sampling.HasField(name) for name in ("temperature", "top_k", "top_p"))
    given = sampling.HasField
    asked = Asked(
        temperature=sampling.temperature if given("temperature") else 1.0 if sampled else 0.0,
        top_k=sampling.top_k,
        top_p=sampling.top_p if given("top_p") else 1.0,
        min_p=sampling.min_p,
        seed=sampling.seed if given("seed") else None,
        repetition_penalty=sampling.repetition_penalty if given("repetition_penalty") else 1.0,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        stop_token_ids=tuple(request.stop_token_ids),
        stop=tuple(request.stop),
        ignore_eos=request.ignore_eos,
        min_tokens=sampling.min_tokens,
        # Negative is its word for "none".
        logprobs=output.logprobs if output.HasField("logprobs") and output.logprobs >= 0 else None,
        guide=_guide(request.guided_decoding) if request.HasField("guided_decoding") else None,
    )
    prompt = request.tokenized.input_token_ids
    wrong = checks.check_names(request.request_id)
    wrong += checks.check_prompt(limits, prompt, "tokenized.input_token_ids")
    wrong += _unsupported(request)
    max_tokens = 0
    if not wrong:
        max_tokens, wrong = checks.max_tokens_for(limits, len(prompt), wanted, "max_tokens")
        wrong += check_min_tokens(asked, max_tokens, _NAMES["min_tokens"]) if not wrong else []
    wrong += check_asked(asked, limits, _NAMES)
    if wrong:
        raise invalid(*wrong)
    return asked, max_tokens


def _read_seed(request: Any, metadata: Mapping[str, Any]) -> None:
    text = metadata.get(SEED_HEADER)
    if text is None:
        return
    digits = isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= MAX_SEED_DIGITS
    if not digits or int(text) >= 1 << 64:
        raise invalid(Violation(SEED_HEADER, f"is {text[:40]!r}; wanted a number below 2^64"))
    request.sampling_config.seed = int(text)


def _guide(guided: Any) -> Guide | None:
    """None for the types that `_unsupported` refuses."""
    kinds = pb.GuidedDecodingParams
    match guided.guide_type:
        case kinds.GUIDE_TYPE_JSON:
            return Guide("json_object")
        case kinds.GUIDE_TYPE_JSON_SCHEMA:
            return Guide("json_schema", guided.guide)
        case kinds.GUIDE_TYPE_REGEX:
            return Guide("regex", guided.guide)
        case _:
            return None


def _unsupported(request: Any) -> list[Violation]:
    """Fields that change the answer and that we cannot honour. Values that mean "off" pass."""
    sampling, output = request.sampling_config, request.output_config
    asked = {
        "guided_decoding.guide_type": request.HasField("guided_decoding")
        and _guide(request.guided_decoding) is None,
        "embedding_bias": bool(request.embedding_bias),
        "lora_config": request.HasField("lora_config"),
        "prompt_tuning_config": request.HasField("prompt_tuning_config"),
        "multimodal_input": request.HasField("multimodal_input"),
        "disaggregated_params": request.HasField("disaggregated_params"),
        "lookahead_config": request.HasField("lookahead_config"),
        "bad": bool(request.bad),
        "bad_token_ids": bool(request.bad_token_ids),
        "sampling_config.beam_width": sampling.beam_width > 1,
        "sampling_config.num_return_sequences": sampling.num_return_sequences > 1,
        "sampling_config.prompt_ignore_length": sampling.prompt_ignore_length > 0,
        "sampling_config.top_p_decay": sampling.HasField("top_p_decay") and sampling.top_p_decay != 1.0,
        "sampling_config.no_repeat_ngram_size": sampling.no_repeat_ngram_size > 0,
        "output_config.prompt_logprobs": output.HasField("prompt_logprobs") and output.prompt_logprobs >= 0,
        "output_config.return_context_logits": output.return_context_logits,
        "output_config.return_generation_logits": output.return_generation_logits,
    }
    return [
        Violation(name, "is not supported by this engine") for name, is_asked in asked.items() if is_asked
    ]


def _chunk(request_id: str, tokens: list[int], piece: Piece) -> Any:
    return pb.GenerateResponse(
        request_id=request_id,
        chunk=pb.GenerateStreamChunk(
            token_ids=tokens,
            prompt_tokens=piece.usage.prompt_tokens,
            completion_tokens=piece.usage.completion_tokens,
            cached_tokens=piece.usage.cached_tokens,
            logprobs=_logprobs(tokens, piece.logprobs),
        ),
    )


def _complete(
    request_id: str, answer: list[int], logprobs: list[TokenLogprob], piece: Piece, stop: int | None
) -> Any:
    assert piece.finish is not None
    return pb.GenerateResponse(
        request_id=request_id,
        complete=pb.GenerateComplete(
            output_token_ids=answer,
            finish_reason=_FINISH[piece.finish],
            matched_token_id=stop,
            matched_stop_str=piece.stop,
            prompt_tokens=piece.usage.prompt_tokens,
            completion_tokens=piece.usage.completion_tokens,
            cached_tokens=piece.usage.cached_tokens,
            logprobs=_logprobs(answer, logprobs),
        ),
    )


def _logprobs(tokens: Sequence[int], logprobs: Sequence[TokenLogprob]) -> list[Any]:
    return [
        pb.TokenLogprob(
            token_id=token,
            logprob=one.logprob,
            top_logprobs=[pb.TopLogprob(token_id=t, logprob=value) for t, value in one.top],
        )
        for token, one in zip(tokens, logprobs, strict=False)
    ]


def _version() -> str:
    try:
        return version("moefleet")
    except PackageNotFoundError:
        return "unknown"
