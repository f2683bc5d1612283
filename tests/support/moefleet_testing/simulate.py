"""`python -m moefleet_testing.simulate --seeds 20 --first 1`: the operator's core on virtual time, one story a seed."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from moefleet_testing.simulator.scenario import Scenario
from moefleet_testing.simulator.world import RuleBrokenError

# Lines of the story printed before a broken rule.
STORY_LINES = 60


def simulate(seed: int) -> Scenario:
    """Raises RuleBrokenError with the story's end and the command that tells it again."""
    scenario = Scenario(seed)
    try:
        scenario.run()
    except RuleBrokenError as error:
        story = "\n".join(scenario.world.story[-STORY_LINES:])
        again = f"python -m moefleet_testing.simulate --seeds 1 --first {seed}"
        raise RuleBrokenError(
            f"{story}\nseed {seed}: {error}\nagain: {again}  (PYTHONPATH=tests/support)"
        ) from error
    return scenario


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--story", action="store_true", help="print everything that happened")
    arguments = parser.parse_args()
    began = time.monotonic()
    broken = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        try:
            scenario = simulate(seed)
        except RuleBrokenError as error:
            broken += 1
            print(error, file=sys.stderr)
            continue
        except Exception:
            broken += 1
            traceback.print_exc()
            print(f"seed {seed}: an error, not a broken rule", file=sys.stderr)
            continue
        if arguments.story:
            print("\n".join(scenario.world.story))
        served = sum(g.served for g in scenario.gateways)
        failed = sum(len(g.failed) for g in scenario.gateways)
        print(
            f"seed {seed}: {len(scenario.fleets)} fleets, {scenario.acts} acts, {len(scenario.operators)} operators, "
            f"{served} requests served, {failed} not, {scenario.api.writes} writes, {scenario.world.events} events"
        )
    print(f"{arguments.seeds} seeds, {broken} broken, {time.monotonic() - began:.1f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
