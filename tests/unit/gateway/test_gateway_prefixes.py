"""Who gets a prompt whose beginning somebody has already."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet_gateway.picking.core import Ask, Core, End, Pick
from moefleet_gateway.picking.facts import Fleet, Limits, Load, Replica
from moefleet_gateway.picking.models import ModelTable
from moefleet_gateway.picking.prefixes import FRESH_S, HOLDERS_MAX, PrefixIndex
from moefleet_gateway.requests import Read, read
from moefleet_perf.prefixes import MARK_BYTES, MARK_TOKENS, text_marks, token_marks
from moefleet_runtime.engine.base import EngineRequest
from moefleet_runtime.engine.prefixes import PrefixLog
from moefleet_runtime.engine.simulated_replica import _Prefixes, block_hashes
from smg_grpc_proto.generated import trtllm_service_pb2 as trt

FLEET = Fleet("ns", "f", "fu", "2026-01-01T00:00:00Z", "m", limits=Limits(queued_requests=1000))
SYSTEM = list(range(1000, 1320))  # 320 tokens that many prompts begin with


def prompt(user: int, shared: list[int] = SYSTEM, own: int = 64) -> list[int]:
    return [*shared, *range(user * 100, user * 100 + own)]


def core(*uids: str) -> Core:
    core = Core(600.0)
    core.set_fleets([FLEET], 0.0)
    for uid in uids:
        core.set_replica(Replica(uid, uid, "ns/f", "fu", f"{uid}:1", f"{uid}:2", True, False), 0.0)
        core.set_load(uid, sample(uid), 0.0)
        core.endpoints.acknowledge(core.endpoints.version)
    return core


def sample(uid: str, prefill: int = 0) -> Load:
    return Load(uid, True, "Serving", 0.0, prefill_tokens=prefill)


def ids(request_id: str, tokens: list[int], salt: str = "") -> Ask:
    return Ask(request_id, ids=len(tokens), max_tokens=10, marks=token_marks(tokens, salt))


def text(request_id: str, said: str, salt: str = "") -> Ask:
    data = said.encode()
    return Ask(request_id, text_bytes=len(data), max_tokens=10, marks=text_marks(data, salt))


def served(request_id: str, tokens: int, cached: int) -> End:
    return End(request_id, "ns/f", True, False, tokens, cached, 10)


def one(c: Core, ask: Ask, now: float = 1.0, cached: int | None = None) -> str:
    """Picked, answered and over: nobody is busy afterwards."""
    pick = c.arrive(FLEET, ask, now)
    assert isinstance(pick, Pick)
    count = ask.ids or (ask.text_bytes or 0) // 4
    c.finish(served(ask.request_id, count, count - 1 if cached is None else cached), now)
    return pick.targets[0].uid


def test_hashes_know_length_salt_and_kind() -> None:
    tokens = prompt(1)
    marks = token_marks(tokens)
    assert len(marks) == sum(length <= len(tokens) for length in MARK_TOKENS)
    assert token_marks(prompt(2))[:9] == marks[:9] and token_marks(prompt(2))[9] != marks[9]  # noqa: PT018
    assert not set(marks) & set(token_marks(tokens, "tenant"))
    assert not set(text_marks(b"x" * 4096)) & set(text_marks(b"x" * 4096, "tenant"))
    assert token_marks(tokens[:31]) == text_marks(b"x" * 127) == ()
    assert len(token_marks(range(1 << 20))) == len(MARK_TOKENS) < 32


def test_both_doors_of_the_gateway_name_a_prompt_and_its_tenant() -> None:
    models = ModelTable([FLEET])
    frames = {
        "/moefleet.inference.v1.InferenceService/Generate": inf.GenerateRequest(
            model="m", token_ids=inf.TokenIds(ids=SYSTEM), cache_salt="7"
        ),
        "/trtllm.TrtllmService/Generate": trt.GenerateRequest(
            tokenized=trt.TokenizedInput(input_token_ids=SYSTEM), cache_salt_id=7
        ),
    }
    for path, message in frames.items():
        body = message.SerializeToString()
        found = read(path, {"x-moefleet-fleet": "ns/f"}, b"\0" + len(body).to_bytes(4, "big") + body, models)
        assert isinstance(found, Read)
        assert found.ask.marks == token_marks(SYSTEM, "7")


def test_a_second_prompt_that_begins_alike_goes_where_the_first_went() -> None:
    c = core("a", "b", "c")
    first = one(c, ids("r0", prompt(0)))
    assert {one(c, ids(f"r{n}", prompt(n))) for n in range(1, 8)} == {first}
    # another tenant's is another prefix, and somebody who shares nothing goes round as ever
    assert (
        len({one(c, ids(f"s{n}", prompt(9, list(range(n * 5000, n * 5000 + 320))))) for n in range(3)}) == 3
    )
    other = [one(c, ids(f"t{n}", prompt(n), salt=str(n))) for n in range(3)]
    assert len(set(other)) == 3


def test_texts_are_known_by_their_bytes() -> None:
    c = core("a", "b", "c")
    system = "You are a careful assistant. " * 30
    first = one(c, text("r0", system + "What is a fleet?"))
    assert {one(c, text(f"r{n}", system + f"Question {n}")) for n in range(1, 6)} == {first}
    assert len({one(c, text(f"s{n}", f"{n}" * 2000)) for n in range(3)}) == 3


def test_a_hit_is_worth_what_it_saves_and_no_more() -> None:
    c = core("a", "b")
    first = one(c, ids("r0", prompt(0)))
    other = "b" if first == "a" else "a"
    c.set_load(first, sample(first, 319), 2.0)
    assert one(c, ids("r1", prompt(1)), 2.0) == first
    c.set_load(first, sample(first, 321), 3.0)
    assert one(c, ids("r2", prompt(2)), 3.0) == other


def test_a_template_of_a_few_words_brings_nobody_together() -> None:
    c = core("a", "b", "c")
    template = list(range(32))
    assert len({one(c, ids(f"r{n}", prompt(n, template, own=600))) for n in range(3)}) == 3


def test_a_replica_that_reports_is_believed_about_itself() -> None:
    c = core("a", "b")
    marks = token_marks(prompt(0))
    c.prefixes.report("a", True, (), ())
    c.prefixes.report("b", True, marks, ())
    assert [one(c, ids(f"r{n}", prompt(0)), 1.0) for n in range(4)] == ["b"] * 4
    # gone there: what we sent it counts until its report could show it, and not longer
    c.prefixes.report("b", False, (), marks)
    c.prefixes.report("a", False, marks, ())
    assert one(c, ids("r9", prompt(0)), 2.0) == "a"
    index = PrefixIndex()
    index.report("a", True, (), ())
    index.picked("a", marks, 5.0)
    assert index.hits(marks, {"a"}, tokens=True, now=5.0 + FRESH_S) == {"a": len(marks)}
    assert index.hits(marks, {"a"}, tokens=True, now=5.1 + FRESH_S) == {}
    # of texts it reports nothing, so there our own memory goes on
    assert index.hits(marks, {"a"}, tokens=False, now=5000.0) == {"a": len(marks)}


@pytest.mark.parametrize("how", ["stream broke", "pod gone", "report begins anew"])
def test_what_a_replica_had_is_forgotten_when_it_may_be_another_process(how: str) -> None:
    c = core("a", "b")
    marks = token_marks(prompt(0))
    c.prefixes.report("a", True, marks, ())
    match how:
        case "stream broke":
            c.set_load("a", None, 1.0)
        case "pod gone":
            c.drop_replica("a", 1.0)
        case _:
            c.prefixes.report("a", True, (), ())
    assert c.prefixes.hits(marks, {"a", "b"}, tokens=True, now=1.0) == {}


def test_a_fleet_that_never_reuses_is_served_as_if_there_were_no_index() -> None:
    c = core("a", "b", "c")
    for n in range(600):
        one(c, ids(f"r{n}", prompt(n % 50)), float(n), cached=0)
    assert c.lanes["ns/f"].trust.value < 0.1
    c.set_load("a", sample("a", 40), 700.0)
    c.set_load("b", sample("b", 40), 700.0)
    assert one(c, ids("last", prompt(1)), 700.0, cached=0) == "c"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.booleans()), max_size=150),
    st.integers(1, 200),
)
def test_memory_is_bounded_and_nobody_unregistered_is_named(
    events: list[tuple[int, int, bool]], hashes_max: int
) -> None:
    index = PrefixIndex(hashes_max)
    alive: set[str] = set()
    for n, (who, what, picked) in enumerate(events):
        uid = f"u{who}"
        marks = token_marks(prompt(what, own=96))
        if picked:
            index.picked(uid, marks, float(n))
            alive.add(uid)
        elif what % 3 == 0:
            index.forget(uid)
            alive.discard(uid)
        else:
            index.report(uid, what % 3 == 1, marks[::2], marks[1::2])
            alive.add(uid)
        assert len(index) <= hashes_max
        asked = {"u0", "u1", "u2"}
        found = index.hits(marks, asked, tokens=True, now=float(n))
        assert found.keys() <= asked & alive
        assert all(1 <= count <= len(marks) for count in found.values())
    index.forget("u0")
    assert "u0" not in index.hits(token_marks(prompt(1)), {"u0"}, tokens=True, now=0.0)


def test_a_prefix_that_everybody_shares_has_few_holders() -> None:
    index = PrefixIndex()
    for n in range(200):
        index.picked(f"u{n}", (1, 2, 3), 0.0)
    found = index.hits((1, 2, 3), {f"u{n}" for n in range(200)}, tokens=True, now=1.0)
    assert len(found) == HOLDERS_MAX


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.integers(40, 200), st.integers(0, 3))
def test_load_stays_balanced_when_all_share_one_prefix(replicas: int, requests: int, tenants: int) -> None:
    """Nothing ends, so all that was sent is outstanding: no replica is ahead of another by more than one prompt's hit and work."""
    uids = [f"u{n}" for n in range(replicas)]
    c = core(*uids)
    sent: Counter[str] = Counter()
    for n in range(requests):
        tokens = prompt(n)
        pick = c.arrive(FLEET, ids(f"r{n}", tokens, salt=str(n % (tenants + 1))), 1.0)
        assert isinstance(pick, Pick)
        sent[pick.targets[0].uid] += 1
        work = [candidate.work() for candidate in c.endpoints.choosable("ns/f")]
        assert max(work) - min(work) <= len(SYSTEM) + len(tokens) + 2 * 10
    assert len(sent) == replicas


def test_bytes_and_tokens_share_their_lengths() -> None:
    assert [tokens * 4 for tokens in MARK_TOKENS] == list(MARK_BYTES)


def test_an_answer_that_just_ended_does_not_send_the_next_turn_away() -> None:
    c = core("a", "b")
    pick = c.arrive(FLEET, ids("r0", prompt(0)), 1.0)
    assert isinstance(pick, Pick)
    first = pick.targets[0].uid
    busy = Load(first, True, "Serving", 2.0, active=1, decode_tokens=400)
    c.set_load(first, busy, 2.0)
    c.finish(served("r0", 384, 0), 2.1)
    assert one(c, ids("r1", prompt(1)), 2.2) == first
    # the others that the sample knows are still there
    c.set_load(first, Load(first, True, "Serving", 3.0, active=3, decode_tokens=1200), 3.0)
    assert one(c, ids("r2", prompt(2)), 3.1) != first


def cached_share(routed: bool) -> float:
    """4 replicas whose caches hold a third of what 36 tenants begin their prompts with; 24 requests at a time, 2,000 in all."""
    uids = ["u0", "u1", "u2", "u3"]
    c = core(*uids)
    logs = {uid: PrefixLog() for uid in uids}
    caches = {uid: _Prefixes(36 * 10 // 3, logs[uid]) for uid in uids}
    chance = random.Random(5)
    found = asked = 0
    running: list[tuple[str, int, int]] = []
    for n in range(2000):
        now = n * 0.05
        tenant = chance.randrange(36)
        tokens = [*range(tenant * 1000, tenant * 1000 + 320), *range(50_000 + n, 50_032 + n)]
        ask = ids(f"r{n}", tokens)
        pick = c.arrive(FLEET, ask if routed else replace(ask, marks=()), now)
        assert isinstance(pick, Pick)
        uid = pick.targets[0].uid
        request = EngineRequest(ask.request_id, tuple(tokens), 10)
        hashes = block_hashes(request)
        cached = min(caches[uid].match(hashes) * 32, len(tokens) - 1)
        caches[uid].publish(hashes, request)
        found, asked = found + cached, asked + len(tokens)
        running.append((ask.request_id, len(tokens), cached))
        if len(running) > 24:
            ended = running.pop(chance.randrange(len(running)))
            c.finish(served(*ended), now)
        if n % 5 == 0:
            for each in uids:
                changes = logs[each].drain()
                c.prefixes.report(each, n == 0, changes.stored, changes.removed)
    return found / asked


def test_small_caches_together_find_twice_as_much_when_prompts_go_where_they_are_known() -> None:
    """0.28 and 0.62 of all prompt tokens; 0.91 is all that can be found."""
    blind, routed = cached_share(False), cached_share(True)
    assert blind < 0.35
    assert routed > 2 * blind
