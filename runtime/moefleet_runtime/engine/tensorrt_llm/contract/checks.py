"""What has to hold while an engine runs. Each check leaves the engine idle; the last one ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from moefleet_runtime.engine.base import EngineDead, EngineFull, EngineRequest, Finish, RequestInvalid
from moefleet_runtime.engine.tensorrt_llm.contract.rig import Rig, require

Check = Callable[[Rig], None]

# The API's default for max_tokens is 32: more than that shows whether ours arrives.
MORE_THAN_DEFAULT: Final = 41
# Long enough to be caught running.
LONG: Final = 1500


def constructed_with_what_the_adapter_relies_on(rig: Rig) -> None:
    made = rig.seen.constructed
    for name in ("enable_chunked_prefill", "enable_iter_perf_stats", "skip_tokenizer_init"):
        require(made.get(name) is True, f"LLM({name}=True): found {made.get(name)!r}")
    require(
        made.get("max_seq_len") == rig.info.context_length, f"max_seq_len: found {made.get('max_seq_len')!r}"
    )
    reuse = getattr(made.get("kv_cache_config"), "enable_block_reuse", None)
    require(reuse is rig.settings.kv_reuse, f"kv_cache_config.enable_block_reuse: found {reuse!r}")


def max_tokens_is_always_ours(rig: Rig) -> None:
    prompt = rig.prompt(9)
    answer = rig.ask(prompt, MORE_THAN_DEFAULT)
    given = rig.seen.call(prompt).sampling["max_tokens"]
    require(
        given == MORE_THAN_DEFAULT, f"SamplingParams.max_tokens: wanted {MORE_THAN_DEFAULT}, found {given}"
    )
    require(
        len(answer.tokens) == MORE_THAN_DEFAULT,
        f"wanted {MORE_THAN_DEFAULT} tokens, got {len(answer.tokens)}",
    )
    require(answer.finishes == [Finish.LENGTH], f"wanted LENGTH once, got {answer.finishes}")


def deltas_add_up_to_the_engines_answer(rig: Rig) -> None:
    prompt = rig.prompt(17)
    answer = rig.ask(prompt, 23)
    told = list(rig.seen.call(prompt).result.outputs[0].token_ids)
    require(answer.tokens == told, f"delivered {answer.tokens}, the engine's own answer is {told}")
    require(answer.deltas > 1, "a streamed answer came in one piece")


def the_same_prompt_gets_the_same_greedy_answer(rig: Rig) -> None:
    prompt = rig.prompt(12)
    first, second = (rig.ask(prompt, 16, cache_salt=salt).tokens for salt in ("one", "two"))
    require(first == second, f"first {first}, then {second}")


def every_request_has_parameters_of_its_own(rig: Rig) -> None:
    prompts = [rig.prompt(5 + i) for i in range(4)]
    for i, prompt in enumerate(prompts):
        rig.ask(prompt, 3 + i)
    objects = [c.keywords["sampling_params"] for c in rig.seen.calls]
    require(len({id(o) for o in objects}) == len(objects), "one SamplingParams went to two requests")
    for prompt in prompts:
        sampling = rig.seen.call(prompt).sampling
        require(sampling["end_id"] in rig.info.eos_token_ids, f"end_id: found {sampling['end_id']}")


def requests_beside_each_other_each_get_theirs(rig: Rig) -> None:
    wanted = {rig.submit(rig.prompt(3 + 5 * i), 5 + 3 * i): 5 + 3 * i for i in range(rig.info.max_batch_size)}
    for request_id, tokens in wanted.items():
        answer = rig.ended(request_id)
        require(len(answer.tokens) == tokens, f"wanted {tokens} tokens, got {len(answer.tokens)}")
        require(answer.finishes == [Finish.LENGTH], f"wanted LENGTH once, got {answer.finishes}")


def a_stop_token_is_delivered_and_ends_the_answer(rig: Rig) -> None:
    prompt = rig.prompt(8)
    whole = rig.ask(prompt, 24).tokens
    stop = whole[10]
    wanted = whole[: whole.index(stop) + 1]
    answer = rig.ask(prompt, 24, stop_token_ids=frozenset({stop}))
    require(answer.tokens == wanted, f"stop token {stop}: wanted {wanted}, got {answer.tokens}")
    require(answer.finishes == [Finish.STOP], f"wanted STOP once, got {answer.finishes}")


def an_answer_that_began_elsewhere_goes_on(rig: Rig) -> None:
    prompt, generated = rig.prompt(10), rig.prompt(5)
    answer = rig.ask(prompt, 12, generated=generated)
    asked = [c for c in rig.seen.calls if c.prompt == [*prompt, *generated]]
    require(len(asked) == 1, f"wanted one request with prompt and answer so far, found {len(asked)}")
    found = asked[0].sampling["max_tokens"]
    require(found == 7, f"SamplingParams.max_tokens: wanted what is left of 12 after 5, found {found}")
    require(len(answer.tokens) == 7, f"wanted the 7 tokens that were left, got {len(answer.tokens)}")
    require(answer.finishes == [Finish.LENGTH], f"wanted LENGTH once, got {answer.finishes}")
    try:
        rig.engine.submit(EngineRequest("over", prompt, 5, generated=generated))
    except RequestInvalid:
        return
    require(False, "an answer that has all its tokens: wanted RequestInvalid")


def a_prompt_longer_than_a_step_is_served(rig: Rig) -> None:
    length = min(3 * rig.info.max_batch_tokens + 7, rig.info.context_length - 8)
    require(length > rig.info.max_batch_tokens, "the context is too short for this check: give a longer one")
    answer = rig.ask(rig.prompt(length), 4)
    require(len(answer.tokens) == 4, f"a prompt of {length} tokens got {len(answer.tokens)}: {answer.error}")


def an_abort_frees_the_request_and_nobody_else(rig: Rig) -> None:
    prompt = rig.prompt(6)
    aborted, beside = rig.submit(prompt, LONG), rig.submit(rig.prompt(7), MORE_THAN_DEFAULT)
    rig.begun(aborted)
    rig.engine.abort(aborted)
    rig.engine.abort("nobody has this id")
    answer = rig.ended(aborted)
    require(answer.finishes == [Finish.CANCELLED], f"wanted CANCELLED once, got {answer.finishes}")
    require(
        rig.seen.call(prompt).aborts == 1,
        f"RequestOutput.abort: wanted once, got {rig.seen.call(prompt).aborts}",
    )
    require(len(answer.tokens) < LONG, "the whole answer was made before the abort: nothing was shown")
    other = rig.ended(beside)
    require(len(other.tokens) == MORE_THAN_DEFAULT, f"the request beside it got {len(other.tokens)} tokens")
    _idle(rig)


def prefixes_are_reused_within_a_salt_and_not_across(rig: Rig) -> None:
    if not rig.settings.kv_reuse:
        return
    prompt = rig.prompt(min(200, rig.info.context_length - 8))
    cold, warm, other = (rig.ask(prompt, 3, cache_salt=salt) for salt in ("a", "a", "b"))
    require(cold.cached_tokens == 0, f"a new prompt: {cold.cached_tokens} tokens from the cache")
    require(
        0 < warm.cached_tokens < len(prompt),
        f"the same prompt again: {warm.cached_tokens} tokens from the cache",
    )
    require(other.cached_tokens == 0, f"another salt: {other.cached_tokens} tokens from the cache")


def sampling_arrives_as_asked(rig: Rig) -> None:
    prompt = rig.prompt(11)
    rig.ask(prompt, 3, temperature=0.7, top_k=40, top_p=0.9, seed=-1)
    found = rig.seen.call(prompt).sampling
    wanted: Mapping[str, Any] = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": (1 << 64) - 1}
    for name, value in wanted.items():
        require(found[name] == value, f"SamplingParams.{name}: wanted {value}, found {found[name]}")
    greedy = rig.prompt(13)
    rig.ask(greedy, 3)
    for name in ("temperature", "top_k", "top_p", "seed"):
        value = rig.seen.call(greedy).sampling[name]
        require(value is None, f"greedy: SamplingParams.{name}: wanted None, found {value}")


def the_load_counts_what_was_delivered(rig: Rig) -> None:
    before = rig.engine.load()
    prompts = [rig.prompt(10), rig.prompt(20)]
    delivered = sum(len(rig.ask(prompt, 27).tokens) for prompt in prompts)
    _idle(rig)
    after = rig.engine.load()
    made = after.output_tokens_total - before.output_tokens_total
    require(made == delivered, f"output_tokens_total: wanted {delivered} more, found {made}")
    read = after.prompt_tokens_total - before.prompt_tokens_total
    require(read == 30, f"prompt_tokens_total: wanted 30 more, found {read}")
    require(after.progress_at_s > before.progress_at_s, "progress_at_s did not move")


def a_running_request_is_seen_in_the_load(rig: Rig) -> None:
    request_id = rig.submit(rig.prompt(10), LONG)
    rig.begun(request_id)
    load = rig.engine.load()
    rig.engine.abort(request_id)
    require(
        load.active + load.queued == 1,
        f"one request runs, found {load.active} active and {load.queued} queued",
    )
    require(
        0 < load.outstanding_decode_tokens < LONG,
        f"outstanding_decode_tokens: {load.outstanding_decode_tokens}",
    )
    require(load.kv_used_tokens > 0, "kv_used_tokens is 0 while a request runs")
    rig.ended(request_id)
    _idle(rig)


def statistics_come_and_have_one_reader(rig: Rig) -> None:
    before = rig.engine.load().steps.count
    rig.ask(rig.prompt(10), 20)
    rig.until(lambda: rig.engine.load().steps.count > before, "no step was counted after an answer")
    steps = rig.engine.load().steps
    require(steps.time_s > 0, "steps took no time")
    require(steps.prefill_tokens > 0, "no prompt token was counted in any step")
    require(steps.sequences > 0, "no decoding sequence was counted in any step")
    require(len(rig.seen.readers) == 1, f"get_stats has {len(rig.seen.readers)} readers, each gets a part")
    require(rig.engine.load().kv_max_tokens > 0, "kv_max_tokens is 0")


def what_can_never_be_served_is_refused_before_the_engine(rig: Rig) -> None:
    info, calls = rig.info, len(rig.seen.calls)
    prompt = rig.prompt(4)
    for name, request in {
        "an empty prompt": EngineRequest("x", (), 4),
        "a prompt as long as the context": EngineRequest("x", (5,) * info.context_length, 4),
        "an unknown token": EngineRequest("x", (info.vocabulary_size,), 4),
        "a negative token": EngineRequest("x", (-1,), 4),
        "no tokens": EngineRequest("x", prompt, 0),
        "a negative temperature": EngineRequest("x", prompt, 4, temperature=-1.0),
        "top_p of 0": EngineRequest("x", prompt, 4, temperature=1.0, top_p=0.0),
    }.items():
        try:
            rig.engine.submit(request)
        except RequestInvalid:
            continue
        require(False, f"{name}: was accepted")
    require(len(rig.seen.calls) == calls, "a refused request reached the engine")


def a_full_engine_refuses_and_goes_on(rig: Rig) -> None:
    most = rig.info.max_batch_size + rig.settings.max_queued
    running = [rig.submit(rig.prompt(5), LONG) for _ in range(most)]
    refused = False
    try:
        rig.submit(rig.prompt(5), 1)
    except EngineFull:
        refused = True
    for request_id in running:
        rig.engine.abort(request_id)
    require(refused, f"request {most + 1} was accepted")
    for request_id in running:
        finishes = rig.ended(request_id).finishes
        require(finishes == [Finish.CANCELLED], f"wanted CANCELLED once, got {finishes}")
    _idle(rig)
    require(len(rig.ask(rig.prompt(5), 3).tokens) == 3, "the engine did not go on")


def stopping_cancels_what_runs_and_shuts_down_once(rig: Rig) -> None:
    request_id = rig.submit(rig.prompt(5), LONG)
    rig.begun(request_id)
    rig.engine.stop()
    rig.engine.stop()
    finishes = rig.ended(request_id).finishes
    require(finishes == [Finish.CANCELLED], f"wanted CANCELLED once, got {finishes}")
    require(rig.seen.shutdowns == 1, f"LLM.shutdown: wanted once, found {rig.seen.shutdowns}")
    dead = False
    try:
        rig.submit(rig.prompt(5), 1)
    except EngineDead:
        dead = True
    require(dead, "a stopped engine took a request")
    twice = [k for k, a in rig.answers.items() if len(a.finishes) != 1]
    require(not twice, f"requests without exactly one end: {twice}")
    require(not rig.died_of, f"the engine says that it died: {rig.died_of}")


def _idle(rig: Rig) -> None:
    def holds() -> bool:
        load = rig.engine.load()
        busy = load.active + load.queued + load.outstanding_prefill_tokens + load.outstanding_decode_tokens
        return not busy

    rig.until(holds, "every request has ended, but the load is not 0")


CHECKS: Final[tuple[Check, ...]] = (
    constructed_with_what_the_adapter_relies_on,
    max_tokens_is_always_ours,
    deltas_add_up_to_the_engines_answer,
    the_same_prompt_gets_the_same_greedy_answer,
    every_request_has_parameters_of_its_own,
    requests_beside_each_other_each_get_theirs,
    a_stop_token_is_delivered_and_ends_the_answer,
    an_answer_that_began_elsewhere_goes_on,
    a_prompt_longer_than_a_step_is_served,
    an_abort_frees_the_request_and_nobody_else,
    prefixes_are_reused_within_a_salt_and_not_across,
    sampling_arrives_as_asked,
    the_load_counts_what_was_delivered,
    a_running_request_is_seen_in_the_load,
    statistics_come_and_have_one_reader,
    what_can_never_be_served_is_refused_before_the_engine,
    a_full_engine_refuses_and_goes_on,
    stopping_cancels_what_runs_and_shuts_down_once,
)
