"""One answer over as many calls as it takes: the next request to send, what each message adds, what a break means.

No connection and no clock: the asynchronous and the synchronous client drive the same object.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, assert_never

from moefleet.client.errors import Failure, error_of, in_the_middle
from moefleet.client.resuming import ENGINE_FAILED, Again, Course, GiveUp, plan
from moefleet.client.types import (
    Answer,
    Delta,
    FinishReason,
    Guide,
    Model,
    Options,
    ResumePolicy,
    Sampling,
    Stopping,
    TokenLogprob,
    Usage,
)
from moefleet.inference.v1 import inference_pb2 as pb

MAX_REQUEST_ID_CHARACTERS: Final = 256
_FINISH: Final = {
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
}


class Run:
    def __init__(self, first: pb.GenerateRequest, policy: ResumePolicy) -> None:
        self._first = first
        self._policy = policy
        # With `resume` it goes on from there; what came before is not in `answer`.
        self._course = Course(begun=first.HasField("resume"))
        self._calls = 0
        # Whether the call that runs has brought something.
        self._fruitful = False
        self._token_ids: list[int] = []
        self._text: list[str] = []
        self._text_characters = 0
        self._logprobs: list[TokenLogprob] = []
        self._resumed = 0
        self._request_id = self._first.request_id
        self._last: pb.GenerateResponse | None = None

    @property
    def over(self) -> bool:
        return self._last is not None

    @property
    def answer(self) -> Answer:
        usage, reason, stopped_by = None, None, None
        if (last := self._last) is not None:
            used = last.usage
            usage = Usage(used.prompt_tokens, used.completion_tokens, used.cached_prompt_tokens)
            reason = _FINISH[last.finish_reason]
            if (by := last.WhichOneof("stopped_by")) is not None:
                stopped_by = getattr(last, by)
        return Answer(
            token_ids=tuple(self._token_ids),
            text="".join(self._text),
            logprobs=tuple(self._logprobs),
            finish_reason=reason,
            usage=usage,
            request_id=self._request_id,
            resumed=self._resumed,
            seed=self._first.sampling.seed if self._first.sampling.temperature > 0 else None,
            stopped_by=stopped_by,
        )

    def next_request(self) -> pb.GenerateRequest:
        """The first as it was asked, later ones with all that has come. Begins a call."""
        self._fruitful = False
        self._calls += 1
        request = self._first
        if self._calls > 1:
            request = pb.GenerateRequest()
            request.CopyFrom(self._first)
            if request.request_id:
                # The one before may still run somewhere for a moment.
                suffix = f"~{self._calls}"
                request.request_id = (
                    self._first.request_id[: MAX_REQUEST_ID_CHARACTERS - len(suffix)] + suffix
                )
        if self._calls > 1 and self._course.begun:
            request.resume.token_ids.extend(self._token_ids)
            request.resume.text_characters += self._text_characters
        return request

    def take(self, message: pb.GenerateResponse) -> Delta | None:
        """None: there is nothing in it for a reader."""
        if not self._fruitful:
            self._resumed += self._course.begun
            self._fruitful = True
            self._course = replace(self._course, begun=True)
        self._request_id = self._request_id or message.request_id
        logprobs = tuple(
            TokenLogprob(one.token_id, one.logprob, tuple((t.token_id, t.logprob) for t in one.top))
            for one in message.logprobs
        )
        delta = Delta(tuple(message.token_ids), message.text, logprobs)
        self._token_ids += delta.token_ids
        self._text.append(delta.text)
        self._text_characters += len(delta.text)
        self._logprobs += logprobs
        if message.finish_reason in _FINISH:
            self._last = message
        return delta if delta.token_ids or delta.text else None

    def broke(self, failure: Failure, *, left_s: float | None, chance: float) -> float:
        """Seconds to wait before the next call. Raises MoefleetError when there is none to be made."""
        course = self._course
        self._course = (
            replace(course, breaks=course.breaks + 1, fruitless=0)
            if self._fruitful
            else replace(course, fruitless=course.fruitless + 1)
        )
        if failure.reason in ENGINE_FAILED:
            self._course = replace(self._course, deaths=course.deaths + 1)
        match plan(self._policy, self._course, failure, left_s=left_s, chance=chance):
            case Again(wait_s):
                return wait_s
            case GiveUp(why, suspect):
                told = in_the_middle(failure) if self._fruitful else failure
                raise error_of(told, why, self.answer, suspect=suspect)
            case other:
                assert_never(other)


def model_of(message: pb.Model) -> Model:
    return Model(message.name, message.fleet, message.engine, message.context_length, message.vocabulary_size)


def new_run(model: str, prompt: str | Sequence[int], options: Options) -> Run:
    return Run(_request(model, prompt, options), options.get("resume", ResumePolicy()))


def _request(model: str, prompt: str | Sequence[int], options: Options) -> pb.GenerateRequest:
    sampling = options.get("sampling", Sampling())
    if sampling.temperature > 0 and sampling.seed is None:
        sampling = replace(sampling, seed=secrets.randbits(64))
    stopping = options.get("stopping", Stopping())
    request = pb.GenerateRequest(
        request_id=options.get("request_id") or "",
        model=model,
        sampling=pb.Sampling(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=dict(sampling.logit_bias),
        ),
        stopping=pb.Stopping(
            max_tokens=stopping.max_tokens,
            stop=stopping.stop,
            stop_token_ids=stopping.stop_token_ids,
            ignore_eos=stopping.ignore_eos,
            min_tokens=stopping.min_tokens,
        ),
        cache_salt=options.get("cache_salt", ""),
        logprobs=options.get("logprobs"),
        priority=options.get("priority", 0),
    )
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.token_ids.ids.extend(prompt)
    if (guide := options.get("guide")) is not None:
        _set_guide(request, guide)
    return request


def _set_guide(request: pb.GenerateRequest, guide: Guide) -> None:
    match guide.form:
        case "json_schema":
            request.guide.json_schema = guide.text
        case "regex":
            request.guide.regex = guide.text
        case "json_object":
            request.guide.json_object = True
        case _:
            assert_never(guide.form)
