"""What several commands take and how they print: the options they share, the console, and bad input as one sentence."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from moefleet_perf import CalibrationError
from rich.console import Console

from .exits import Exit

# A table is not folded to 80 columns when the output is no terminal: it goes to scripts and logs there.
PLAIN_WIDTH = 200


class Output(StrEnum):
    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="json: one document for scripts.")]


class InputError(Exception):
    """What was given cannot be used; the message names the argument, the row or the field."""

    def __init__(self, message: str, code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.code = code


def console(*, stderr: bool = False) -> Console:
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=PLAIN_WIDTH)


@contextmanager
def replay_input(command: str) -> Iterator[None]:
    """Around what needs moefleet_replay: bad input and a missing extra become InputError."""
    try:
        importlib.import_module("moefleet_replay.compare_run")
    except ModuleNotFoundError as error:
        raise InputError(
            f"`{command}` needs the extra `replay` ({error.name} is missing): pip install 'moefleet[replay]'",
            Exit.FAILED,
        ) from error
    from moefleet_replay.cold_start import ColdStartError
    from moefleet_replay.compare import StudyError
    from moefleet_replay.compare_run import ArgumentError
    from moefleet_replay.fidelity import FidelityError
    from moefleet_replay.plan import PlanError
    from moefleet_replay.policy import PolicyError
    from moefleet_replay.traces import TraceError

    try:
        yield
    except (
        TraceError,
        PolicyError,
        CalibrationError,
        ArgumentError,
        ColdStartError,
        StudyError,
        FidelityError,
        PlanError,
    ) as error:
        raise InputError(str(error)) from error


def written(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}", Exit.FAILED) from error


def text(path: Path | None) -> str | None:
    return None if path is None else str(path)
