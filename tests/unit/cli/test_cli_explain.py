"""`moefleet explain`: the decision in force at a time, its terms in words, and what is said when they are not known."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from moefleet_cli.app import run
from moefleet_cli.exits import Exit
from moefleet_cli.explain import DecisionRecord, decisions, explanation, in_force, parse_time, sentences
from moefleet_cli.options import InputError
from moefleet_operator.api import API_VERSION, PLURAL
from moefleet_operator.scaling import Terms
from rich.console import Console

TERMS = Terms(
    arriving=2.31, arriving_prefill=1.9, forecast=2.0, headroom_ratio=0.25, backlog=0.22, kv=0.02, need=2.72, capacity_rps=52.3,
    capacity_input_tok_s=31_000, capacity_output_tok_s=10_400, bound="TPOT", arrival_rps=120, mean_input_tokens=600, mean_output_tokens=200,
    wanted=3, enough=3, held=5, dead=1, hold_s=315, lead_s=425,
).as_dict()  # fmt: skip


def line(at: float, before: int, after: int, reason: str = "DemandRose", **more: Any) -> str:
    return json.dumps({"at": at, "from": before, "to": after, "reason": reason, "message": "m", "terms": TERMS} | more)  # fmt: skip


def config_map(*lines: str) -> dict[str, Any]:
    return {"data": {"decisions": "\n".join(lines)}}


def test_every_term_is_a_sentence_with_its_unit() -> None:
    said = dict(sentences(TERMS))
    assert said["arriving work"] == (
        "2.31 replicas' (prefill 1.90, decode 0.41): 120 requests/s of 600 prompt and 200 generated tokens"
    )
    assert said["capacity"] == (
        "each carries 52.3 requests/s of these (31,000 prompt and 10,400 generated tokens/s);"
        " what limits it: a fuller step would be slower than timePerOutputToken allows"
    )
    assert said["headroom"] == "25 % of it, for what arrives during a cold start of 425 s"
    assert said["need"] == "2.72 replicas, rounded to 3"
    assert said["backlog"].startswith("0.22 replicas")
    assert said["failed starts"] == "1 should long be ready and are replaced"
    assert said["hold"] == "not below 5: the most that was called enough in the last 315 s"


def test_what_is_nothing_is_not_said_and_what_is_new_is_shown_as_it_is() -> None:
    said = dict(sentences(Terms().as_dict() | {"seasonal": 0.7, "headroom_source": "learnt from 900 samples"}))  # fmt: skip
    assert said["arriving work"] == "nothing arrives"
    assert said["capacity"] == "not known: no request has been seen"
    assert said["headroom"].endswith("(learnt from 900 samples)")
    assert said["seasonal"] == "0.7"
    assert not {"backlog", "hold", "KV caches", "failed starts", "bypass"} & set(said)


def test_all_that_the_operator_says_today_has_words_of_its_own() -> None:
    # A new term of the operator falls through to "shown as it is": then it is time for a sentence.
    said = dict(sentences({name: value or 1 for name, value in TERMS.items()}))
    words = {
        "arriving work", "capacity", "forecast", "level", "headroom", "misses allowed", "backlog", "KV caches", "need", "failed starts", "hold", "bypass",
        "cold caches", "step model", "flaps", "hour of the day",
    }  # fmt: skip
    assert set(said) <= words


@pytest.mark.parametrize(
    ("balance", "wanted"),
    [(0.4, "40 % of what may be saved up is unspent"), (0.0, "0 % of what may be saved up is unspent")],
)
def test_the_budget_of_misses_is_told(balance: float, wanted: str) -> None:
    said = dict(sentences(TERMS | {"allowed_share": 0.0125, "budget_balance": balance}))
    assert said["misses allowed"] == f"1.25 % of requests are left out by the headroom; {wanted}"


def test_the_ring_is_read_in_time_and_what_cannot_be_read_is_left_out() -> None:
    records = decisions(config_map(line(200, 2, 3), "no json", line(100, 1, 2), '{"at": 5}'))
    assert [(r.at_s, r.before, r.after) for r in records] == [(100, 1, 2), (200, 2, 3)]
    assert decisions(None) == decisions({}) == decisions({"data": None}) == []


@pytest.mark.parametrize(("at", "found"), [(None, 200), (500, 200), (200, 200), (199, 100), (99, None)])
def test_the_decision_in_force_is_the_last_before(at: float | None, found: float | None) -> None:
    records = decisions(config_map(line(100, 1, 2), line(200, 2, 3)))
    chosen = in_force(records, at)
    assert (chosen.at_s if chosen else None) == found


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31T12:00:00", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31T13:00:00+01:00", "2026-01-31T12:00:00+00:00"),
        ("07:30", "2026-02-01T07:30:00+00:00"),
        ("07:30:15", "2026-02-01T07:30:15+00:00"),
    ],
)
def test_times_are_read_as_people_write_them(text: str, wanted: str) -> None:
    assert parse_time(text, datetime(2026, 2, 1, 9, tzinfo=UTC)) == datetime.fromisoformat(wanted).timestamp()


@pytest.mark.parametrize("text", ["noon", "25:00", "2026-13-01T00:00:00Z", ""])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="at: wanted a time as"):
        parse_time(text, datetime(2026, 2, 1, tzinfo=UTC))


def test_a_decision_without_terms_is_its_sentence() -> None:
    screen = Console(file=io.StringIO(), width=200)
    screen.print(explanation(DecisionRecord(0.0, 2, 3, "DemandRose", "work for 2.3 replicas arrives"), "n/f", "min 1"))  # fmt: skip
    assert isinstance(screen.file, io.StringIO)
    text = screen.file.getvalue()
    assert "n/f: 2 -> 3 replicas, DemandRose, 1970-01-01T00:00:00Z" in text
    assert "Up: the work that arrives needs it." in text
    assert "work for 2.3 replicas arrives" in text
    assert "not recorded yet" in text


@contextmanager
def api_server(answers: dict[str, Any], folder: Path) -> Iterator[str]:
    """An API server that knows these paths; yields a kubeconfig."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            body = json.dumps(
                found
                if found is not None
                else {"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"}
            ).encode()
            self.send_response(200 if found is not None else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = folder / "kubeconfig"
    config.write_text(
        json.dumps(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
                "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "n"}}],
            }
        )
    )  # fmt: skip
    try:
        yield str(config)
    finally:
        server.shutdown()
        server.server_close()


FLEET = {
    "metadata": {"name": "f", "namespace": "n"},
    "spec": {
        "model": {"name": "m", "source": "file:///m"},
        "engine": {"image": "i"},
        "scaling": {"minReplicas": 2, "maxReplicas": 9},
    },
    "status": {
        "scaling": {
            "lastDecision": {
                "time": "1970-01-01T00:05:00Z",
                "from": 3,
                "to": 4,
                "reason": "Backlog",
                "message": "the newest",
            }
        }
    },
}


@pytest.fixture
def paths() -> dict[str, Any]:
    learnt = {"metadata": {"name": "f-scaling"}, **config_map(line(100, 1, 2), line(200, 2, 3))}
    return {
        f"/apis/{API_VERSION}/namespaces/n/{PLURAL}/f": FLEET,
        "/api/v1/namespaces/n/configmaps/f-scaling": learnt,
    }


def test_the_newest_decision_is_told_and_an_older_one_on_demand(
    tmp_path: Path, paths: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with api_server(paths, tmp_path) as kubeconfig:
        assert run(["explain", "f", "--kubeconfig", kubeconfig]) == Exit.OK
        text = capsys.readouterr().out
        assert "n/f: 3 -> 4 replicas, Backlog" in text
        assert "the newest" in text
        assert "minReplicas 2, maxReplicas 9" in text
        arguments = ["explain", "f", "--kubeconfig", kubeconfig, "--at", "1970-01-01T00:03:00Z", "-o", "json"]
        assert run(arguments) == Exit.OK
        document = json.loads(capsys.readouterr().out)
        assert (document["from"], document["to"], document["at"]) == (1, 2, 100)
        assert document["terms"] == TERMS
        arguments[5] = "1970-01-01T00:00:01Z"
        assert run(arguments) == Exit.FAILED
        assert "no decision is kept from 1970-01-01T00:00:01Z; the oldest is from 1970-01-01T00:01:40Z" in capsys.readouterr().err  # fmt: skip


def test_without_the_ring_the_status_is_enough_and_without_a_fleet_it_is_named(
    tmp_path: Path, paths: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    del paths["/api/v1/namespaces/n/configmaps/f-scaling"]
    with api_server(paths, tmp_path) as kubeconfig:
        assert run(["explain", "f", "--kubeconfig", kubeconfig]) == Exit.OK
        assert "the newest" in capsys.readouterr().out
        assert run(["explain", "g", "--kubeconfig", kubeconfig]) == Exit.CLUSTER
        assert "namespace n has no fleet g" in capsys.readouterr().err
