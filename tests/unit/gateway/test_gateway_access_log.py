"""How entries of Envoy's access log are read."""

from typing import Any

import pytest
from envoy.data.accesslog.v3 import accesslog_pb2 as pb
from google.protobuf import json_format
from moefleet_gateway.access_log import read_end
from moefleet_gateway.picking.core import End

ENTRY: dict[str, Any] = {
    "commonProperties": {"timeToFirstDownstreamTxByte": "0.5s", "timeToLastDownstreamTxByte": "2.5s"},
    "request": {"requestId": "r", "requestHeaders": {"x-moefleet-cluster": "ns/f"}},
    "response": {
        "responseTrailers": {
            "grpc-status": "0",
            "x-usage-prompt-tokens": "10",
            "x-usage-completion-tokens": "5",
            "x-usage-cached-tokens": "3",
        }
    },
}


def entry(**changes: Any) -> pb.HTTPAccessLogEntry:
    return json_format.ParseDict({**ENTRY, **changes}, pb.HTTPAccessLogEntry())


def test_usage_and_times() -> None:
    assert read_end(entry()) == End("r", "ns/f", True, False, 10, 3, 5, 0.5, 2.0)


def test_requests_that_went_nowhere() -> None:
    assert read_end(entry(request={"requestId": "r"})) == End("r", "", ok=False, failed=False)
    assert read_end(entry(request={})) is None


@pytest.mark.parametrize(
    ("response", "flags", "failed"),
    [
        ({"responseTrailers": {"grpc-status": "13"}}, {}, True),
        ({"responseHeaders": {"grpc-status": "14"}}, {}, True),  # trailers-only
        ({"responseTrailers": {"grpc-status": "3"}}, {}, False),
        ({"responseTrailers": {"grpc-status": "1"}}, {}, False),
        ({}, {"downstreamRemoteReset": True}, False),
        ({}, {"downstreamConnectionTermination": True}, False),
        ({}, {"durationTimeout": True}, False),
        ({}, {"upstreamConnectionTermination": True}, True),
        ({"responseTrailers": {"grpc-status": "0", "x-usage-prompt-tokens": "many"}}, {}, False),
    ],
)
def test_what_counts_as_our_failure(response: dict[str, Any], flags: dict[str, bool], failed: bool) -> None:
    end = read_end(entry(response=response, commonProperties={"responseFlags": flags}))
    assert end is not None
    assert (end.failed, end.prompt_tokens, end.output_tokens) == (failed, None, None)
