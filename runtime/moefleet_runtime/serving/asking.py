"""What a request asks of the sampler, in the words of neither service, and what is wrong with it. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from moefleet_runtime.engine.base import OPTIONS, EngineRequest, Finish, Guide
from moefleet_runtime.serving.checks import MAX_TOKEN_BYTES, ModelLimits, check_sampling, check_stops
from moefleet_runtime.serving.problems import Violation

MAX_STOPS: Final = 16
MAX_STOP_CHARACTERS: Final = 256
MAX_LOGIT_BIASES: Final = 1024
MAX_LOGIT_BIAS: Final = 100.0
MAX_PENALTY: Final = 2.0
MAX_REPETITION_PENALTY: Final = 10.0
MAX_LOGPROBS: Final = 20
MAX_PRIORITY: Final = 1000
MAX_GUIDE_CHARACTERS: Final = 64 << 10
# Objects and lists within each other, or groups of an expression. Engines' libraries read guides by recursion, some of them in C++,
# where too deep is not an error but the end of the process.
MAX_GUIDE_DEPTH: Final = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """Fields as EngineRequest's, but checked by nobody yet."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    priority: int = 0
    guide: Guide | None = None
    generated: tuple[int, ...] = ()

    def request(
        self,
        request_id: str,
        prompt: tuple[int, ...],
        max_tokens: int,
        *,
        cache_salt: str,
        deadline_s: float | None,
    ) -> EngineRequest:
        """`stop` is left out: texts are the server's business, the engine knows tokens."""
        return EngineRequest(
            request_id=request_id,
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            stop_token_ids=frozenset(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            cache_salt=cache_salt,
            deadline_s=deadline_s,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            min_tokens=self.min_tokens,
            logprobs=self.logprobs,
            priority=self.priority,
            guide=self.guide,
            generated=self.generated,
        )

    def ending_token(self, limits: ModelLimits, token: int) -> bool:
        """Whether an answer that stopped with this token was stopped by it; else by the end of its guide."""
        eos = () if self.ignore_eos and self.guide is None else limits.eos_token_ids
        return token in self.stop_token_ids or token in eos

    def over(self, limits: ModelLimits, max_tokens: int) -> Finish | None:
        """How an answer ended of which all tokens are `generated` already: only its last message was lost."""
        if not self.generated:
            return None
        if len(self.generated) >= self.min_tokens and self.ending_token(limits, self.generated[-1]):
            return Finish.STOP
        return Finish.LENGTH if len(self.generated) >= max_tokens else None


_OFF: Final = Asked()
# Written so that NaN is in none. Made once: this is on every request's way to its first token.
_RANGES: Final[tuple[tuple[str, Callable[[float], bool], str], ...]] = (
    ("min_p", lambda value: 0 <= value <= 1, "0 to 1"),
    (
        "repetition_penalty",
        lambda value: 0 < value <= MAX_REPETITION_PENALTY,
        f"more than 0, at most {MAX_REPETITION_PENALTY:g}",
    ),
    *(
        (field, lambda value: -MAX_PENALTY <= value <= MAX_PENALTY, f"{-MAX_PENALTY:g} to {MAX_PENALTY:g}")
        for field in ("presence_penalty", "frequency_penalty")
    ),
    ("logprobs", lambda value: 0 <= value <= MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}"),
    ("priority", lambda value: -MAX_PRIORITY <= value <= MAX_PRIORITY, f"{-MAX_PRIORITY} to {MAX_PRIORITY}"),
)


def check_asked(asked: Asked, limits: ModelLimits, names: Mapping[str, str]) -> list[Violation]:
    """`names`: the service's name of each field that has another one than Asked; of the sampling fields, of a common
    prefix "sampling"."""

    def name(field: str) -> str:
        return names.get(field, field)

    wrong = check_sampling(asked.temperature, asked.top_k, asked.top_p, prefix=names["sampling"])
    wrong += check_stops(limits, asked.stop_token_ids, name("stop_token_ids"))
    wrong += [
        Violation(name(field), f"is {found:g}; wanted {range_}")
        for field, good, range_ in _RANGES
        if not good(found := getattr(asked, field) or 0)
    ]
    if wrong_token := next((t for t in asked.generated if t >= limits.vocabulary_size), None):
        last = limits.vocabulary_size - 1
        wrong.append(
            Violation(name("generated"), f"has {wrong_token}; token ids of this model are 0 to {last}")
        )
    wrong += _check_bias(asked, limits, name("logit_bias"))
    wrong += _check_stop_texts(asked, name("stop"))
    if asked.guide is not None:
        wrong += _check_guide(asked.guide, name("guide"))
    refused = OPTIONS - limits.supports
    wrong += [
        Violation(name(option), "is not supported by this engine")
        for option in sorted(refused)
        if getattr(asked, option) != getattr(_OFF, option)
    ]
    return wrong


def check_min_tokens(asked: Asked, max_tokens: int, field: str) -> list[Violation]:
    if 0 <= asked.min_tokens <= max_tokens:
        return []
    return [Violation(field, f"is {asked.min_tokens}; wanted 0 to max_tokens, which is {max_tokens}")]


def check_generated(asked: Asked, max_tokens: int, field: str) -> list[Violation]:
    if len(asked.generated) <= max_tokens:
        return []
    return [Violation(field, f"has {len(asked.generated)} tokens; max_tokens is {max_tokens}")]


def check_resumed_text(asked: Asked, characters: int, field: str) -> list[Violation]:
    """So many characters are left out of what follows: more than the tokens can spell would swallow the rest of the answer."""
    most = len(asked.generated) * MAX_TOKEN_BYTES
    return (
        [] if characters <= most else [Violation(field, f"is {characters}; its tokens spell at most {most}")]
    )


def _check_bias(asked: Asked, limits: ModelLimits, field: str) -> list[Violation]:
    if len(asked.logit_bias) > MAX_LOGIT_BIASES:
        return [Violation(field, f"has {len(asked.logit_bias)} tokens; at most {MAX_LOGIT_BIASES}")]
    out = []
    for token, bias in asked.logit_bias:
        if token >= limits.vocabulary_size:
            last = limits.vocabulary_size - 1
            out.append(Violation(f"{field}[{token}]", f"token ids of this model are 0 to {last}"))
        elif not -MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS:
            out.append(
                Violation(
                    f"{field}[{token}]", f"is {bias:g}; wanted {-MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}"
                )
            )
    return out


def _check_stop_texts(asked: Asked, field: str) -> list[Violation]:
    if len(asked.stop) > MAX_STOPS:
        return [Violation(field, f"has {len(asked.stop)} texts; at most {MAX_STOPS}")]
    return [
        Violation(f"{field}[{i}]", f"has {len(text)} characters; wanted 1 to {MAX_STOP_CHARACTERS}")
        for i, text in enumerate(asked.stop)
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS
    ]


def _check_guide(guide: Guide, field: str) -> list[Violation]:
    """What can be said without the engine's library; the rest it says itself when the request comes there."""
    if guide.form == "json_object":
        return []
    if not 1 <= len(guide.text) <= MAX_GUIDE_CHARACTERS:
        return [
            Violation(field, f"has {len(guide.text)} characters; wanted 1 to {MAX_GUIDE_CHARACTERS}"),
        ]
    if guide.form == "json_schema":
        try:
            schema: Any = json.loads(guide.text)
        except ValueError as error:
            return [Violation(field, f"is no JSON: {error}")]
        except RecursionError:
            return [Violation(field, f"is nested too deeply; at most {MAX_GUIDE_DEPTH} levels")]
        if not isinstance(schema, dict):
            return [Violation(field, f"is a JSON {type(schema).__name__}; wanted an object")]
        depth = _depth_of_json(schema)
    else:
        depth = _depth_of_groups(guide.text)
    if depth > MAX_GUIDE_DEPTH:
        return [Violation(field, f"is nested too deeply: {depth} levels; at most {MAX_GUIDE_DEPTH}")]
    return []


def _depth_of_json(value: Any) -> int:
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def _depth_of_groups(expression: str) -> int:
    """Parentheses that are escaped or in a class are characters like others."""
    deepest = depth = 0
    in_class = escaped = False
    for character in expression:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character in "()":
            depth += 1 if character == "(" else -1
            deepest = max(deepest, depth)
    return deepest
