"""A strict stand-in for `tensorrt_llm` 1.2.1, and what tests of its adapter share.

`installed/tensorrt_llm` is the package itself, generated at import from the API snapshot of the runtime: tests put `installed`
on the path of the process that shall find it. Every behaviour that is more than a name cites the section of the notes on
1.2.1 that it comes from ("notes 3": cancellation), which are summed up in the README beside the snapshot.
"""

from __future__ import annotations

from pathlib import Path

# What goes onto sys.path (or PYTHONPATH of a host process).
INSTALLED = Path(__file__).resolve().parent / "installed"
