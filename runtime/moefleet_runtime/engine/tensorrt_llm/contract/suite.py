"""Runs the checks one after the other and says which hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from moefleet_runtime.engine.base import EngineSettings, StartFailed
from moefleet_runtime.engine.tensorrt_llm.contract.checks import CHECKS
from moefleet_runtime.engine.tensorrt_llm.contract.names import NAME_CHECKS
from moefleet_runtime.engine.tensorrt_llm.contract.rig import Rig


@dataclass(frozen=True, slots=True)
class Outcome:
    name: str
    # Empty: it holds.
    broken: str = ""


def check_names() -> Iterator[Outcome]:
    for check in NAME_CHECKS:
        yield _outcome(_words(check), check)


def check_engine(settings: EngineSettings, *, patience_s: float) -> Iterator[Outcome]:
    """Starts one engine, which the last check stops. After a start that failed nothing else can be said."""
    try:
        rig = Rig(settings, patience_s=patience_s)
    except StartFailed as error:
        yield Outcome("the engine starts", f"{error.reason}: {error.message}")
        return
    yield Outcome("the engine starts")
    try:
        for check in CHECKS:
            yield _outcome(_words(check), lambda check=check: check(rig))  # type: ignore[misc]
    finally:
        rig.engine.stop()


def _outcome(name: str, check: Callable[[], None]) -> Outcome:
    try:
        check()
    except Exception as error:
        # A check that cannot even ask (a name that is not there) has shown a break as well.
        return Outcome(
            name, str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        )
    return Outcome(name)


def _words(check: Callable[..., None]) -> str:
    return check.__name__.replace("_", " ")
