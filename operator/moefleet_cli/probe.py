"""`python -m moefleet_cli.probe`: one request as a consumer sends it; what `helm test` runs. Needs gRPC and nothing else.

Exit codes: 0 answered; 1 not answered, with the status; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import sys

import grpc
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet.inference.v1 import inference_pb2_grpc as rpc

# `helm test` starts right after an installation: the Service may need seconds to get its first endpoint.
CONNECT_LIMIT_S = 60.0
LIST_LIMIT_S = 15.0
# A gateway holds a request while its fleet wakes up.
GENERATE_LIMIT_S = 90.0
MAX_TOKENS = 8
# Nobody's model has this name: the gateway must say so itself.
UNKNOWN_MODEL = "moefleet-probe-no-such-model"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m moefleet_cli.probe", description=__doc__)
    parser.add_argument("--address", required=True, help="HOST:PORT of the gateway, gRPC without TLS")
    parser.add_argument("--model", default="", help="empty: the first that the gateway knows, or none yet")
    asked = parser.parse_args(arguments)
    try:
        with grpc.insecure_channel(asked.address) as channel:
            print(probe(channel, asked.model))
    except grpc.RpcError as error:
        print(f"{asked.address}: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    except ProbeFailedError as error:
        print(f"{asked.address}: {error}", file=sys.stderr)
        return 1
    return 0


class ProbeFailedError(Exception):
    """The gateway answered, but not as it promises to."""


def probe(channel: grpc.Channel, model: str) -> str:
    """What was asked and what came back, as a sentence.

    Raises:
        grpc.RpcError: the status of a request that was not answered.
        ProbeFailedError: an answer without tokens, or an unknown model that was answered.
    """
    stub = rpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
    listed = stub.ListModels(pb.ListModelsRequest(), timeout=CONNECT_LIMIT_S, wait_for_ready=True).models
    chosen = model or (listed[0].fleet or listed[0].name if listed else "")
    if not chosen:
        return _unknown_model_is_refused(stub)
    tokens, text = 0, ""
    request = pb.GenerateRequest(model=chosen, prompt="Hello", stopping=pb.Stopping(max_tokens=MAX_TOKENS))
    for message in stub.Generate(request, timeout=GENERATE_LIMIT_S):
        tokens += len(message.token_ids)
        text += message.text
    if tokens == 0:
        raise ProbeFailedError(f"{chosen} ended its answer without a token")
    return f"{chosen} answered with {tokens} tokens: {text!r}"


def _unknown_model_is_refused(stub: rpc.InferenceServiceStub) -> str:
    """Without a fleet the road still goes through Envoy to the picker and back."""
    request = pb.GenerateRequest(model=UNKNOWN_MODEL, prompt="Hello")
    try:
        for _ in stub.Generate(request, timeout=LIST_LIMIT_S):
            raise ProbeFailedError(f"{UNKNOWN_MODEL} was answered")
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return "the gateway serves; there is no model yet"
        raise
    raise ProbeFailedError(f"{UNKNOWN_MODEL} ended without a status")


if __name__ == "__main__":
    sys.exit(main())
