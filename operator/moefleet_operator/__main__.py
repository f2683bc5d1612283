"""`python -m moefleet_operator`: reads settings, then runs until SIGTERM or until something ends that should not."""

from __future__ import annotations

import gc
import os
import sys

import uvloop

from moefleet_operator.settings import Settings, SettingsError, load

# Objects that come and stay by the thousand make Python look for garbage in all of them again and again: with its own
# thresholds (700, 10, 10) that was a third of the time that parsing watch events took. What we drop has hardly any cycles.
GC_THRESHOLDS = (50_000, 20, 20)


def main() -> int:
    try:
        settings = load(os.environ, sys.argv[1:])
    except SettingsError as error:
        sys.stderr.write(f"moefleet_operator cannot start: {error}\n")
        return 2
    code: int = uvloop.run(_run(settings))
    return code


async def _run(settings: Settings) -> int:
    import random

    from moefleet_operator import logs
    from moefleet_operator.core.core import Core
    from moefleet_operator.handlers.process import Operator
    from moefleet_operator.handlers.watching import quieten
    from moefleet_operator.kube.clock import ServerClock

    logs.configure(settings.log_level, settings.pod_name)
    quieten()
    # Modules are not garbage.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    return await Operator(settings, lambda core: Core(core, random.Random()), ServerClock()).run()


if __name__ == "__main__":
    sys.exit(main())
