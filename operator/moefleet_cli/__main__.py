"""`moefleet`, `kubectl-moefleet` and `python -m moefleet_cli`."""

from __future__ import annotations

import sys
from pathlib import Path

from .app import run


def main() -> None:
    # kubectl runs `kubectl-moefleet`; help texts then say what was typed.
    plugin = Path(sys.argv[0]).name.startswith("kubectl-")
    sys.exit(run(name="kubectl moefleet" if plugin else "moefleet"))


if __name__ == "__main__":
    main()
