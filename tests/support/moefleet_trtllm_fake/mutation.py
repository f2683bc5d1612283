"""Planted mistakes: the source of a module of the adapter with one place changed, in force while the context lasts."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterator

PACKAGE = "moefleet_runtime.engine.tensorrt_llm"
# Those that take names from others, in the order of their imports: run again, so that they take the changed ones.
DEPENDENTS = ("loading", "engine", "starting")


@contextlib.contextmanager
def planted(module: str, old: str, new: str) -> Iterator[None]:
    """`old` must be there exactly once."""
    changed = importlib.import_module(f"{PACKAGE}.{module}")
    source = inspect.getsource(changed)
    assert source.count(old) == 1, f"{module}: {source.count(old)} times: {old}"
    others = [importlib.import_module(f"{PACKAGE}.{name}") for name in DEPENDENTS if name != module]
    sources = [(changed, source.replace(old, new)), *((other, inspect.getsource(other)) for other in others)]
    before = [(each, dict(each.__dict__)) for each, _ in sources]
    try:
        for each, text in sources:
            exec(compile(text, str(each.__file__), "exec"), each.__dict__)
        yield
    finally:
        # Never empty in between: threads of an engine that is ending still look into it.
        for each, names in before:
            each.__dict__.update(names)
