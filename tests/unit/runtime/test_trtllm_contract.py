"""The contract holds for the adapter against the strict fake, and for no adapter with a planted mistake."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moefleet_runtime.engine.base import EngineSettings
from moefleet_runtime.engine.tensorrt_llm.contract.__main__ import main, settings_for
from moefleet_runtime.engine.tensorrt_llm.contract.suite import Outcome, check_engine, check_names
from moefleet_trtllm_fake import installed, write_checkpoint
from moefleet_trtllm_fake.mutation import planted

# What the fake does within milliseconds; a mistake that shows as waiting costs one of these.
PATIENCE_S = 5.0
PATIENCE_WITH_A_MISTAKE_S = 1.0


@pytest.fixture
def settings(tmp_path: Path) -> EngineSettings:
    return settings_for(
        write_checkpoint(tmp_path / "model"),
        tensor=2,
        attention_data=False,
        args={"gpuMemoryGib": 80, "autotunerCache": str(tmp_path)},
    )


def broken(outcomes: Iterator[Outcome]) -> dict[str, str]:
    return {outcome.name: outcome.broken for outcome in outcomes if outcome.broken}


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param({}, id="as it is thought to be"),
        pytest.param({"extra_keys": True}, id="statistics of a later version"),
        pytest.param({"step_s": 0.0005}, id="fast"),
    ],
)
def test_the_adapter_keeps_the_contract(settings: EngineSettings, behaviour: dict[str, Any]) -> None:
    with installed(**behaviour):
        assert broken(check_names()) == {}
        assert broken(check_engine(settings, patience_s=PATIENCE_S)) == {}


def test_the_adapter_keeps_the_contract_with_attention_dp(tmp_path: Path) -> None:
    parallel = settings_for(
        write_checkpoint(tmp_path), tensor=2, attention_data=True, args={"gpuMemoryGib": 80}
    )
    with installed():
        assert broken(check_engine(parallel, patience_s=PATIENCE_S)) == {}


MISTAKES = {
    "max_tokens is left to the API": ("sampling", '        "max_tokens": max_tokens,\n', ""),
    "one SamplingParams for all requests": (
        "engine",
        "sampling_params=self._api.sampling_params(**keywords)",
        "sampling_params=self.__dict__.setdefault('_one', self._api.sampling_params(**keywords))",
    ),
    "cumulative ids are delivered as new": (
        "answers",
        "output.token_ids[self.delivered :]",
        "output.token_ids",
    ),
    "an aborted request has stopped by itself": (
        "answers",
        "case None if aborted or self.abort_wanted:\n                return Finish.CANCELLED",
        "case None if aborted or self.abort_wanted:\n                return Finish.STOP",
    ),
    "chunked prefill is off": (
        "llm_arguments",
        '"enable_chunked_prefill": True',
        '"enable_chunked_prefill": False',
    ),
    "statistics are off": (
        "llm_arguments",
        '"enable_iter_perf_stats": True',
        '"enable_iter_perf_stats": False',
    ),
    "an abort does not reach the engine": ("engine", "answer.result.abort()", "pass"),
    "the salt is lost": ("engine", "cache_salt=request.cache_salt or None", "cache_salt=None"),
    "stop tokens are lost": (
        "sampling",
        '"stop_token_ids": list(stops.token_ids) or None',
        '"stop_token_ids": None',
    ),
    "the seed is lost": ("sampling", 'keywords["seed"] = request.seed % _UNSIGNED', "pass"),
    "a second reader of the statistics": (
        "engine",
        "        for reader in self._readers:\n            reader.start()",
        "        self._readers.append(Reader('second', llm.get_stats, self._take_record))\n"
        "        for reader in self._readers:\n            reader.start()",
    ),
    "deltas are counted instead of tokens": (
        "engine",
        "_output_tokens_total += len(tokens)",
        "_output_tokens_total += 1",
    ),
    "ended requests are kept": ("engine", "self._live.pop(answer.request.request_id, None)", "pass"),
    "the prompt's length is not checked": ("checking", "if length >= info.context_length:", "if False:"),
    "the answer so far is lost": ("engine", "[*request.prompt, *request.generated]", "list(request.prompt)"),
    "max_tokens begins anew for an answer that goes on": (
        "checking",
        "left = longest - length - len(request.generated)",
        "left = longest - length",
    ),
    "the end comes twice": ("engine", "        answer.ended = True\n", ""),
    "greedy is temperature 1": ("sampling", "if request.temperature > 0:", "if True:"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_adapter_with_a_planted_mistake_breaks_the_contract(
    settings: EngineSettings, mistake: str
) -> None:
    module, old, new = MISTAKES[mistake]
    with installed(), planted(module, old, new):
        outcomes = check_engine(settings, patience_s=PATIENCE_WITH_A_MISTAKE_S)
        # The first break is enough.
        found = next((outcome for outcome in outcomes if outcome.broken), None)
        outcomes.close()  # type: ignore[attr-defined]
    assert found is not None, f"no check noticed: {mistake}"


def test_a_mistake_is_gone_after_its_test(settings: EngineSettings) -> None:
    with installed():
        with planted(*MISTAKES["chunked prefill is off"]):
            pass
        assert broken(check_engine(settings, patience_s=PATIENCE_S)) == {}


@pytest.mark.parametrize(
    ("behaviour", "check", "says"),
    [
        ({"version": "1.3.0"}, "the version is the one that is driven", "found 1.3.0"),
        ({"version": "1.2.0"}, "the engine starts", "EngineUnavailable: .* the image has 1.2.0"),
        ({"start": "worker-error"}, "the engine starts", "missing weight model.norm.weight"),
        ({"loses_aborts": True}, "an abort frees the request and nobody else", "has not ended"),
        ({"statistics_fail": True}, "statistics come and have one reader", "no step was counted"),
        ({"empty_answers": [3]}, "the same prompt gets the same greedy answer", "first"),
    ],
)
def test_an_installed_engine_that_is_different_breaks_the_contract(
    settings: EngineSettings, behaviour: dict[str, Any], check: str, says: str
) -> None:

    with installed(**behaviour):
        found = broken(check_names()) | broken(check_engine(settings, patience_s=PATIENCE_WITH_A_MISTAKE_S))
    assert re.search(says, found[check])


def test_the_command_prints_each_check_and_fails_when_one_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(write_checkpoint(tmp_path / "model"))
    line = ["--model", model, "--tensor", "2", "--arg", "gpuMemoryGib=80", "--patience-s", "1"]
    with installed():
        assert main(line) == 0
    assert "27 of 27 checks hold" in capsys.readouterr().out
    with installed(statistics_fail=True):
        assert main(line) == 1
    out = capsys.readouterr().out
    assert "broken  statistics come and have one reader" in out
    assert "26 of 27 checks hold" in out
