"""The pure parts of the gateway bench: what is counted, what stands beside it, and the file that keeps results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet_bench.benches import BENCHES
from moefleet_bench.envoy_alone import envoy_alone
from moefleet_bench.gateway import cpu_row, first_row
from moefleet_bench.processor import cpu_of_stat
from moefleet_bench.report import Row, ratio_of_pairs, write
from moefleet_bench.streams import Window, write_bodies
from moefleet_gateway.bootstrap import bootstrap
from moefleet_gateway.settings import load


def window(**changes: Any) -> Window:
    values: dict[str, Any] = {
        "elapsed_s": 1.0,
        "messages": 1_000_000,
        "ended": 1,
        "tokens": 0,
        "firsts_ms": (1.0,),
        "cpu_s": (1.0,),
        "busy_s": 0.0,
        "others_s": 0.0,
        **changes,
    }
    return Window(**values)


def test_a_ratio_is_taken_inside_pairs_so_drift_cancels() -> None:
    # The machine became three times slower after the first pair: medians of each side alone would say 3.
    assert ratio_of_pairs([2.0, 6.0, 6.0], [1.0, 3.0, 2.0]) == 2.0


def test_a_pair_without_its_other_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio_of_pairs([1.0, 2.0], [1.0])


def test_a_report_keeps_other_rows_and_replaces_its_own(tmp_path: Path) -> None:
    path = tmp_path / "bench" / "report.json"
    write([Row("a", 1.0, "s"), Row("b", 2.0, "s", ratio=0.5)], path)
    write([Row("b", 3.0, "s"), Row("c", 4.0, "s")], path)
    kept = {row["name"]: row for row in json.loads(path.read_text())}
    assert {name: row["value"] for name, row in kept.items()} == {"a": 1.0, "b": 3.0, "c": 4.0}
    assert kept["b"]["ratio"] is None
    assert {"name", "value", "unit", "against", "ratio", "command"} <= set(kept["a"])


def test_every_row_of_the_gateway_has_one_bench() -> None:
    names = [name for bench in BENCHES for name in bench.names]
    assert len(names) == len(set(names))
    assert {
        "gateway_cpu_50", "gateway_cpu_400", "gateway_first_message_p50", "gateway_first_message_p99",
        "picks_per_core", "gateway_tokens",
    } <= set(names)  # fmt: skip


def test_processor_time_is_user_and_kernel_whatever_the_process_is_called() -> None:
    rest = "S 1 1 1 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 436828 2998272 417"
    for name in ("envoy", "a b", "wrk:(1) 9"):
        assert cpu_of_stat(f"12 ({name}) {rest}", 100) == 3.0


def test_cpu_counts_envoy_and_picker_for_each_message() -> None:
    alone = [window(cpu_s=(20.0,)), window(cpu_s=(10.0,), messages=500_000)]
    ours = [window(cpu_s=(25.0, 15.0)), window(cpu_s=(12.0, 10.0), messages=500_000)]
    row = cpu_row("gateway_cpu_50", alone, ours, "at most 2.0")
    assert (row.value, row.ratio) == (42.0, 2.1)
    assert row.against == "20.0 of Envoy alone"


def test_first_message_latency_is_what_is_added_to_the_direct_way() -> None:
    windows = {
        "direct": [window(firsts_ms=(1.0, 2.0, 9.0))],
        "alone": [window(firsts_ms=(2.0, 3.0, 11.0))],
        "gateway": [window(firsts_ms=(4.0, 6.0, 19.0))],
    }
    assert first_row("p50", windows, 64, 0.5).value == 4.0
    row = first_row("p99", windows, 64, 0.99)
    assert row.value == 10.0
    assert row.against == "2.00 ms added by Envoy alone, 64 streams; direct 9.00 ms"


def test_a_window_without_a_first_message_is_told() -> None:
    with pytest.raises(RuntimeError, match="no first message"):
        window(firsts_ms=()).first_ms(0.5)


def test_requests_are_written_with_their_lengths(tmp_path: Path) -> None:
    requests = [inf.GenerateRequest(model="m", prompt="x" * size) for size in (1, 300)]
    data = write_bodies(tmp_path / "bodies", requests).read_bytes()
    found = []
    while data:
        size = int.from_bytes(data[:4], "big")
        found.append(inf.GenerateRequest.FromString(data[4 : 4 + size]))
        data = data[4 + size :]
    assert found == requests


def test_envoy_alone_is_the_gateways_envoy_without_picker_and_discovery() -> None:
    ours = bootstrap(load({"MOEFLEET_RUN_DIR": "/run/x"}))
    before = json.dumps(ours)
    alone = envoy_alone(ours, 1234, "/run/y/admin.sock", ("127.0.0.1:1", "127.0.0.1:2"))
    assert json.dumps(ours) == before
    text = json.dumps(alone)
    for word in (
        "filters.http.ext_proc",
        "filters.http.buffer",
        "access_loggers",
        "dynamic_resources",
        "override_host",
        "picker.sock",
        '"ads"',
    ):
        assert word in before or word in ("override_host", '"ads"')
        assert word not in text, word
    (listener,) = alone["static_resources"]["listeners"]
    assert listener["address"]["socket_address"]["port_value"] == 1234
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    ours_manager = ours["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    for same in ("http2_protocol_options", "early_header_mutation_extensions", "stream_idle_timeout"):
        assert manager[same] == ours_manager[same]
    (cluster,) = alone["static_resources"]["clusters"]
    ports = [
        e["endpoint"]["address"]["socket_address"]["port_value"]
        for group in cluster["load_assignment"]["endpoints"]
        for e in group["lb_endpoints"]
    ]
    assert ports == [1, 2]
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert routes
    assert all(r["route"]["cluster"] == cluster["name"] for r in routes)
