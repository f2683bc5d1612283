"""Guided decoding at the running engine: what comes is what the schema or the expression allows, and nobody else notices."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from moefleet_runtime.engine.base import OPTIONS, Finish, Guide, RequestInvalid
from moefleet_runtime.engine.torch.guides import GuideBroken, Guides, Matcher
from moefleet_runtime.tokenizer import load_tokenizer
from moefleet_testing.torch_engine import CHECKPOINT, RunningEngine, request, settings
from moefleet_testing.torch_oracle import TEXTS, assert_greedy
from transformers import DeepseekV2ForCausalLM

TOKENS = 32
EOS = 1
ANY_GUIDES = Guides(CHECKPOINT / "tokenizer.json", vocabulary_size=2048, eos_token_ids=(EOS,))


@pytest.fixture(scope="module")
def oracle() -> Any:
    return DeepseekV2ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(CHECKPOINT, 2048)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [tokenizer.encode(text) for text in TEXTS]


@pytest.fixture(scope="module")
def engine() -> Any:
    with RunningEngine(settings()) as e:
        yield e
        e.check_nothing_held()


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "sister": {"enum": ["Jane", "Lydia", None]},
    },
    "required": ["name", "age", "sister"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "wanted",
    [{}, {"temperature": 1.0, "seed": 1}, {"temperature": 2.0, "seed": 2, "ignore_eos": True}],
    ids=str,
)
def test_an_answer_is_what_its_schema_allows_and_ends_there(
    engine: RunningEngine, tokenizer: Any, prompts: list[list[int]], wanted: dict[str, Any]
) -> None:
    name = f"schema {wanted}"
    guide = Guide("json_schema", json.dumps(PERSON))
    (answer,) = engine.answers(request(name, prompts[0], 200, guide=guide, **wanted))
    assert engine.out.finish(name) is Finish.STOP
    found = json.loads(tokenizer.decoder().push(answer))
    assert set(found) == {"name", "age", "sister"}
    assert 1 <= len(found["name"]) <= 12
    assert 0 <= found["age"] <= 120
    assert found["sister"] in ("Jane", "Lydia", None)


@pytest.mark.parametrize(
    "regex", ["[0-9]{4}-[0-9]{2}-[0-9]{2}", "(Emma|Anne) (was|is) [a-z]{3,9}\\.", "é{5}", "yes|no"]
)
def test_an_answer_matches_its_expression_from_end_to_end(
    engine: RunningEngine, tokenizer: Any, prompts: list[list[int]], regex: str
) -> None:
    name = f"regex {regex}"
    asked = request(
        name, prompts[1], 200, guide=Guide("regex", regex), temperature=1.5, seed=3, min_tokens=100
    )
    (answer,) = engine.answers(asked)
    # Complete is complete, whatever the minimum: nothing else may follow.
    assert engine.out.finish(name) is Finish.STOP
    assert re.fullmatch(regex, tokenizer.decoder().push([t for t in answer if t != EOS]))


def test_guided_and_free_requests_share_a_batch(
    engine: RunningEngine, tokenizer: Any, oracle: Any, prompts: list[list[int]]
) -> None:
    free = [request(f"free {i}", p, TOKENS, ignore_eos=True) for i, p in enumerate(prompts[:3])]
    guided = [
        request(f"bits {i}", prompts[i], 200, guide=Guide("regex", f"[01]{{{i + 5}}}")) for i in range(3)
    ]
    answers = engine.answers(*free, *guided)
    for prompt, answer in zip(prompts, answers[:3], strict=False):
        assert_greedy(oracle, prompt, answer)
    for i, answer in enumerate(answers[3:]):
        assert re.fullmatch(f"[01]{{{i + 5}}}", tokenizer.decoder().push(answer))


@pytest.mark.parametrize(
    ("guide", "says"),
    [
        (Guide("regex", "[0-9"), "unclosed character class"),
        (Guide("regex", "(?=a)b"), "look-around"),
        (Guide("json_schema", '{"type": "nonsense"}'), "nonsense"),
        (Guide("json_schema", '{"$ref": "http://example.com/schema"}'), "does not fetch"),
        (Guide("json_schema", "[]"), "object schema"),
        (Guide("json_schema", "no json"), "Expecting value"),
    ],
    ids=lambda g: getattr(g, "text", ""),
)
def test_a_guide_that_is_none_is_refused_with_the_library_s_reason(
    engine: RunningEngine, guide: Guide, says: str
) -> None:
    with pytest.raises(RequestInvalid, match=f"guide: .*{says}") as refused:
        engine.engine.submit(request("bad", [5, 6], 5, guide=guide))
    assert refused.value.field == "guide"


def test_a_grammar_that_gives_up_fails_its_own_request_alone(
    oracle: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Matcher.take
    taken: Counter[Matcher] = Counter()

    def gives_up(self: Matcher, token: int) -> bool:
        taken[self] += 1
        if taken[self] == 3:
            raise GuideBroken("guide: as planned")
        return take(self, token)

    monkeypatch.setattr(Matcher, "take", gives_up)
    with RunningEngine(settings()) as e:
        broken = request("broken", prompts[0], TOKENS, guide=Guide("regex", "[ab]{9,}"))
        free = e.answers(request("free", prompts[1], TOKENS, ignore_eos=True), broken)[0]
        assert (e.out.finish("broken"), len(e.out.tokens["broken"])) == (Finish.REFUSED, 2)
        assert "as planned" in e.out.ends["broken"].error
        assert_greedy(oracle, prompts[1], free)
        assert e.engine.load().failed_steps_total == 0
        e.check_nothing_held()


@pytest.mark.parametrize("tokenizer_file", [None, "{}"], ids=["missing", "unreadable"])
def test_a_folder_without_a_usable_tokenizer_serves_everything_else(
    tmp_path: Path, prompts: list[list[int]], tokenizer_file: str | None
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("tokenizer.json"))
    if tokenizer_file is not None:
        (folder / "tokenizer.json").write_text(tokenizer_file)
    with RunningEngine(settings(folder)) as e:
        assert e.info.supports == OPTIONS - {"guide"}
        with pytest.raises(RequestInvalid, match=r"guide: .*tokenizer\.json"):
            e.engine.submit(request("guided", prompts[0], 5, guide=Guide("json_object")))
        assert len(e.answers(request("free", prompts[0], 5, ignore_eos=True, min_p=0.1))[0]) == 5


def patterns(count: int) -> list[dict[str, Any]]:
    return [{"type": "string", "pattern": f".*{chr(97 + i)}.*"} for i in range(count)]


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": patterns(20)},
        {"anyOf": [{"type": "null"}, {"allOf": patterns(20)}]},
        {
            "$ref": "#/$defs/0",
            "$defs": {str(i): {**one, "$ref": f"#/$defs/{i + 1}"} for i, one in enumerate(patterns(20))}
            | {"20": {"type": "string"}},
        },
    ],
    ids=["allOf", "allOf inside", "a chain of $ref"],
)
def test_patterns_that_would_take_the_pods_memory_are_refused_before_they_are_joined(
    schema: dict[str, Any],
) -> None:
    """The library takes 29 s and 2.3 GB for 20 and doubles with each: with 30 the pod would be gone."""
    with pytest.raises(RequestInvalid, match=r"may have 8 patterns and formats, found 20") as refused:
        ANY_GUIDES.matcher(Guide("json_schema", json.dumps(schema)))
    assert refused.value.field == "guide"


def test_many_patterns_that_are_not_joined_and_a_few_that_are_go_through() -> None:
    apart = {"type": "object", "properties": {str(i): one for i, one in enumerate(patterns(20))}}
    ANY_GUIDES.matcher(Guide("json_schema", json.dumps(apart)))
    # As pydantic writes them.
    named = {"$defs": {"It": apart}, "$ref": "#/$defs/It", "title": "It"}
    ANY_GUIDES.matcher(Guide("json_schema", json.dumps(named)))
    # The library itself cannot join these, and says so at once.
    with pytest.raises(RequestInvalid, match="Unable to determine"):
        ANY_GUIDES.matcher(Guide("json_schema", json.dumps({"allOf": patterns(8)})))


PARTS = st.sampled_from(
    [
        "a",
        "[",
        "]",
        "(",
        ")",
        "*",
        "+",
        "?",
        "{",
        "}",
        "1",
        ",",
        "9999",
        "|",
        "\\",
        "d",
        "p{L}",
        ".",
        "^",
        "$",
        "é",
        "(?i)",
        "[^a]",
    ]
)
SCHEMAS = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(
            ["object", "array", "string", "integer", "number", "#", "#/$defs/a", "date", "[0-9]+"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "properties",
                    "items",
                    "enum",
                    "const",
                    "anyOf",
                    "allOf",
                    "oneOf",
                    "not",
                    "$ref",
                    "$defs",
                    "a",
                    "b",
                    "required",
                    "minItems",
                    "maxItems",
                    "minLength",
                    "maxLength",
                    "minimum",
                    "maximum",
                    "multipleOf",
                    "pattern",
                    "format",
                    "additionalProperties",
                    "prefixItems",
                    "x-guidance",
                ]
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=20,
)
GUIDES = st.one_of(
    st.lists(PARTS, max_size=12).map(lambda parts: Guide("regex", "".join(parts))),
    st.text(max_size=20).map(lambda text: Guide("regex", text)),
    SCHEMAS.map(lambda schema: Guide("json_schema", json.dumps(schema))),
    st.text(max_size=20).map(lambda text: Guide("json_schema", text)),
)


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(guide=GUIDES, chances=st.lists(st.integers(0, 2**32), min_size=12, max_size=12))
def test_any_text_is_a_guide_to_follow_or_one_that_is_refused(guide: Guide, chances: list[int]) -> None:
    refused = ""
    try:
        matcher = ANY_GUIDES.matcher(guide)
        for chance in chances:
            allowed = matcher.allowed.nonzero()[0]
            assert len(allowed)
            if matcher.take(int(allowed[chance % len(allowed)])):
                break
    except (RequestInvalid, GuideBroken) as error:
        refused = str(error)
    assert not refused or refused.startswith("guide: ")
