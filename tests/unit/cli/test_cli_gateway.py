"""`moefleet generate` and `models` against a real gRPC server, with the exit codes that scripts rely on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field

import grpc
import pytest
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet.inference.v1 import inference_pb2_grpc as rpc
from moefleet_cli import probe
from moefleet_cli.app import run
from moefleet_cli.exits import Exit


@dataclass
class Fake(rpc.InferenceServiceServicer):
    """Answers `m` with three words; other model names are statuses to end with, `cut` after a token."""

    models: list[pb.Model] = field(default_factory=list)
    requests: list[pb.GenerateRequest] = field(default_factory=list)

    def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=self.models)

    def Generate(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateResponse]:
        self.requests.append(request)
        if request.model in grpc.StatusCode.__members__:
            context.abort(grpc.StatusCode[request.model], f"{request.model} because")
        if request.model not in ("m", "ns/m", "cut", "mute"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model!r}; known: m")
        context.send_initial_metadata((("x-moefleet-pod", "uid-1"),))
        if request.model == "mute":
            return
        yield pb.GenerateResponse(token_ids=[1], text="Once ", request_id="r")
        if request.model == "cut":
            context.abort(grpc.StatusCode.UNAVAILABLE, "the replica is gone")
        yield pb.GenerateResponse(token_ids=[2, 3], text="upon a")
        usage = pb.Usage(prompt_tokens=4, completion_tokens=3, cached_prompt_tokens=2)
        yield pb.GenerateResponse(finish_reason=pb.FINISH_REASON_LENGTH, usage=usage)


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def address(fake: Fake) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    rpc.add_InferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_text_streams_to_stdout_and_counts_go_to_stderr(
    address: str, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "generate",
        "--address",
        address,
        "--model",
        "m",
        "--max-tokens",
        "3",
        "--seed",
        "0",
        "Hello",
    ]
    assert run(arguments) == Exit.OK
    out, err = capsys.readouterr()
    assert out == "Once upon a\n"
    assert "4 prompt tokens (2 cached), 3 generated (length), first after" in err
    (request,) = fake.requests
    assert (request.prompt, request.stopping.max_tokens) == ("Hello", 3)
    assert request.sampling.HasField("seed")
    assert not request.sampling.HasField("temperature"), "what was not asked for is not sent"


def test_json_is_one_document(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "-a", address, "-m", "m", "-o", "json", "Hello"]) == Exit.OK
    document = json.loads(capsys.readouterr().out)
    assert document["text"] == "Once upon a"
    assert document["token_ids"] == [1, 2, 3]
    assert document["finish_reason"] == "length"
    assert document["replica"] == "uid-1"
    assert document["ttft_s"] <= document["total_s"]


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("UNAVAILABLE", Exit.UNAVAILABLE),
        ("DEADLINE_EXCEEDED", Exit.UNAVAILABLE),
        ("RESOURCE_EXHAUSTED", Exit.BUSY),
        ("INVALID_ARGUMENT", Exit.REFUSED),
        ("INTERNAL", Exit.FAILED),
        ("nobody", Exit.UNKNOWN_MODEL),
        ("cut", Exit.CUT),
        ("mute", Exit.CUT),
    ],
)
def test_exit_codes(address: str, capsys: pytest.CaptureFixture[str], model: str, code: Exit) -> None:
    assert run(["generate", "-a", address, "-m", model, "Hello"]) == code
    assert capsys.readouterr().err.startswith(f"moefleet: {address}: ")


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "-a", "127.0.0.1:1"], name="kubectl moefleet") == Exit.UNAVAILABLE
    assert capsys.readouterr().err.startswith("kubectl moefleet: 127.0.0.1:1: UNAVAILABLE")


def test_wrong_arguments(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOEFLEET_ADDRESS", raising=False)
    assert run(["generate", "-m", "m", "Hello"]) == Exit.USAGE
    assert run(["top", "-A", "-n", "x"]) == Exit.USAGE


def test_models(address: str, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.models.append(pb.Model(name="m", fleet="ns/f", engine="Torch", context_length=4096))
    assert run(["models", "-a", address]) == Exit.OK
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["MODEL", "FLEET", "ENGINE", "CONTEXT"]
    assert out[1].split() == ["m", "ns/f", "Torch", "4,096"]
    assert run(["models", "-a", address, "-o", "json"]) == Exit.OK
    (found,) = json.loads(capsys.readouterr().out)
    assert found == {
        "name": "m",
        "fleet": "ns/f",
        "engine": "Torch",
        "context_length": 4096,
        "vocabulary_size": 0,
    }


def test_help_lists_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == Exit.OK
    text = capsys.readouterr().out
    assert all(f" {code.value} " in text for code in Exit)


# --- the probe of `helm test` -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "model", "code", "words"),
    [
        ([], "", 0, "there is no model yet"),
        ([pb.Model(name="x", fleet="ns/m")], "", 0, "ns/m answered with 3 tokens: 'Once upon a'"),
        ([pb.Model(name="m")], "", 0, "m answered with 3 tokens"),
        ([], "m", 0, "m answered with 3 tokens"),
        ([], "nobody", 1, "NOT_FOUND: no model 'nobody'"),
        ([], "mute", 1, "mute ended its answer without a token"),
        ([pb.Model(name="UNAVAILABLE")], "", 1, "UNAVAILABLE because"),
    ],
)
def test_probe(
    *,
    address: str,
    fake: Fake,
    capsys: pytest.CaptureFixture[str],
    models: list[pb.Model],
    model: str,
    code: int,
    words: str,
) -> None:
    fake.models.extend(models)
    assert probe.main([f"--address={address}", f"--model={model}"]) == code
    captured = capsys.readouterr()
    assert words in (captured.err if code else captured.out)
