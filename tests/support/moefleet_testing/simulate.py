"""`python -m moefleet_testing.simulate --seeds 20 --first 1`: the operator's core on virtual time, one schedule a seed.

Exits with 1 when a rule broke. What is printed then: the end of the story, the seed, the shortest schedule found that
breaks the same rule, and the command that tells it again.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from moefleet_testing.planted import BUGS, planted
from moefleet_testing.simulator.coverage import Pairs, table
from moefleet_testing.simulator.scenario import Scenario
from moefleet_testing.simulator.schedule import FAULTS, Schedule, draw
from moefleet_testing.simulator.shrink import shrink
from moefleet_testing.simulator.world import RuleBrokenError

# Lines of the story printed before a broken rule.
STORY_LINES = 60
# Failing schedules that are made shorter in one run; the others are only named.
SHRUNK_MAX = 3
PROGRESS_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one seed."""

    seed: int
    trace: str
    simulated_s: float
    took_s: float
    events: int
    acts: int
    writes: int
    served: int
    lost: int
    fault_kinds: int
    pairs: Pairs
    # Empty: every rule held.
    rule: str = ""
    message: str = ""
    shortest: tuple[int, ...] = ()


@dataclass(slots=True)
class Total:
    seeds: int = 0
    simulated_s: float = 0.0
    took_s: float = 0.0
    events: int = 0
    acts: int = 0
    writes: int = 0
    served: int = 0
    lost: int = 0
    fewest_fault_kinds: int = 10**6
    shortest_s: float = float("inf")
    pairs: Pairs = field(default_factory=Counter)
    broken: list[Told] = field(default_factory=list)

    def add(self, told: Told) -> None:
        self.seeds += 1
        for name in ("simulated_s", "took_s", "events", "acts", "writes", "served", "lost"):
            setattr(self, name, getattr(self, name) + getattr(told, name))
        self.fewest_fault_kinds = min(self.fewest_fault_kinds, told.fault_kinds)
        self.pairs.update(told.pairs)
        if told.rule:
            self.broken.append(told)
        else:
            self.shortest_s = min(self.shortest_s, told.simulated_s)


def simulate(seed: int) -> Scenario:
    """Raises RuleBrokenError with the story's end and the command that tells it again."""
    return tell(draw(seed))


def tell(schedule: Schedule) -> Scenario:
    scenario = Scenario(schedule)
    try:
        scenario.run()
    except RuleBrokenError as error:
        story = "\n".join(scenario.world.story[-STORY_LINES:])
        raise RuleBrokenError(
            f"{story}\nseed {schedule.seed}: {error}\nagain: {again(schedule)}", error.rule
        ) from error
    return scenario


def again(schedule: Schedule) -> str:
    command = f"make simulate SEEDS=1 FIRST={schedule.seed}"
    if len(schedule.acts) == len(draw(schedule.seed).acts):
        return command
    return f"{command} ONLY={','.join(str(a.number) for a in schedule.acts) or 'none'}"


def told_of(seed: int, shorten: bool, only: tuple[int, ...] | None = None) -> Told:
    schedule = draw(seed) if only is None else draw(seed).only(only)
    scenario = Scenario(schedule)
    began = time.process_time()
    rule = message = ""
    shortest: tuple[int, ...] = ()
    try:
        scenario.run()
    except RuleBrokenError as error:
        rule, message = error.rule, _ending(scenario, str(error))
    except Exception as error:
        rule = f"{type(error).__name__} in the code"
        message = _ending(scenario, traceback.format_exc())
    took_s = time.process_time() - began
    if rule and shorten:
        shortest = shrink(schedule, sorted(scenario.acts_done), rule, _rule_of)
    return Told(
        seed=seed,
        trace=scenario.world.trace,
        simulated_s=scenario.world.now,
        took_s=took_s,
        events=scenario.world.events,
        acts=len(scenario.acts_done),
        writes=scenario.api.writes,
        served=scenario.served,
        lost=scenario.lost,
        fault_kinds=len(schedule.fault_kinds),
        pairs=scenario.pairs,
        rule=rule,
        message=message,
        shortest=shortest,
    )


def _rule_of(schedule: Schedule) -> str | None:
    try:
        Scenario(schedule).run()
    except RuleBrokenError as error:
        return error.rule
    except Exception as error:
        return f"{type(error).__name__} in the code"
    return None


def _ending(scenario: Scenario, error: str) -> str:
    return "\n".join([*scenario.world.story[-STORY_LINES:], error])


def explained(told: Told) -> str:
    """Everything that somebody needs who has to find out why."""
    whole = draw(told.seed)
    lines = [told.message, f"seed {told.seed} breaks: {told.rule}"]
    if told.shortest or not whole.acts:
        acts = {a.number: a for a in whole.acts}
        shorter = whole.only(told.shortest)
        lines += [
            f"shortest schedule found: {len(told.shortest)} of {len(whole.acts)} acts",
            *(f"  {n:4d} {acts[n].kind} at {acts[n].at_s:.1f} s of its episode" for n in told.shortest),
            f"again, shortest: {again(shorter)}",
        ]
    lines.append(f"again: {again(whole)}")
    return "\n".join(lines)


def _work(seed: int) -> Told:
    return told_of(seed, shorten=True)


def tell_all(seeds: Iterable[int], jobs: int) -> Iterable[Told]:
    """In order of seeds, whichever process told which."""
    if jobs <= 1:
        yield from map(_work, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, _quiet) as pool:
        yield from pool.imap(_work, seeds, chunksize=4)


def _quiet() -> None:
    """Warnings of production code are part of the story, in virtual time."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


def main() -> int:
    arguments = _arguments()
    _quiet()
    if arguments.planted:
        return _plant(arguments)
    if arguments.story or arguments.only is not None:
        return _one(arguments)
    began, said = time.monotonic(), 0.0
    total = Total()
    for told in tell_all(range(arguments.first, arguments.first + arguments.seeds), arguments.jobs):
        total.add(told)
        if told.rule and len(total.broken) <= SHRUNK_MAX:
            print(explained(told), file=sys.stderr, flush=True)
        elif told.rule:
            print(f"seed {told.seed} breaks, too: {told.rule}", file=sys.stderr, flush=True)
        if arguments.traces:
            print(f"seed {told.seed} trace {told.trace}", flush=True)
        if time.monotonic() - said >= PROGRESS_EVERY_S:
            said = time.monotonic()
            print(
                f"{total.seeds} of {arguments.seeds} seeds, {len(total.broken)} broken, {said - began:.0f} s",
                flush=True,
            )
        if arguments.json:
            _write(arguments.json, arguments.first, total, time.monotonic() - began)
    print(_summary(total, time.monotonic() - began))
    return 1 if total.broken else 0


def _plant(arguments: argparse.Namespace) -> int:
    """Which seed finds a planted bug first; 1 when none of them does."""
    missed = 0
    for bug in BUGS:
        if arguments.planted not in (bug.name, "all"):
            continue
        with planted(bug):
            for seed in range(arguments.first, arguments.first + arguments.seeds):
                found = told_of(seed, shorten=False)
                if found.rule:
                    print(
                        f"{bug.name}: seed {seed} breaks {found.rule!r} after {found.acts} acts", flush=True
                    )
                    break
            else:
                missed += 1
                print(f"{bug.name}: not found in {arguments.seeds} seeds", flush=True)
    return 1 if missed else 0


def _one(arguments: argparse.Namespace) -> int:
    only = None
    if arguments.only is not None:
        only = tuple(int(n) for n in arguments.only.split(",") if n.isdigit())
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        schedule = draw(seed) if only is None else draw(seed).only(only)
        scenario = Scenario(schedule)
        try:
            scenario.run()
        except RuleBrokenError as error:
            print("\n".join(scenario.world.story))
            print(f"seed {seed}: {error}\nagain: {again(schedule)}", file=sys.stderr)
            return 1
        print("\n".join(scenario.world.story))
    return 0


def _summary(total: Total, took_s: float) -> str:
    if not total.seeds:
        return "no seeds"
    return "\n".join(
        [
            table(total.pairs),
            "",
            f"{total.seeds} schedules of {total.simulated_s / total.seeds / 3600:.2f} simulated hours, "
            f"{total.acts / total.seeds:.0f} acts each, at least {total.fewest_fault_kinds} kinds of fault in each",
            f"{total.served} requests served, {total.lost} lost to faults that excuse it, "
            f"{total.writes} writes, {total.events} events",
            f"pairs of act and state: {len(total.pairs)}; of fault and state: {len(_fault_pairs(total.pairs))}",
            f"{total.took_s / total.seeds:.2f} s of processor time a schedule, {took_s:.0f} s in all, "
            f"{len(total.broken)} of {total.seeds} broken",
        ]
    )


def _fault_pairs(pairs: Pairs) -> list[tuple[str, str]]:
    return [pair for pair in pairs if pair[0] in FAULTS]


def _write(path: Path, first: int, total: Total, took_s: float) -> None:
    found = {
        "first": first,
        "seeds": total.seeds,
        "broken": [{"seed": t.seed, "rule": t.rule, "shortest": t.shortest} for t in total.broken],
        "took_s": round(took_s, 1),
        "processor_s": round(total.took_s, 1),
        "simulated_h": round(total.simulated_s / 3600, 1),
        "shortest_schedule_s": round(total.shortest_s, 1) if total.shortest_s < float("inf") else None,
        "fewest_fault_kinds": total.fewest_fault_kinds,
        "acts": total.acts,
        "events": total.events,
        "writes": total.writes,
        "requests": {"served": total.served, "lost": total.lost},
        "pairs": {f"{act} / {state}": n for (act, state), n in sorted(total.pairs.items())},
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--only", help="numbers of acts, with commas: the others are left out")
    parser.add_argument("--planted", help="name of a planted bug, or all: say which seed finds it first")
    parser.add_argument("--story", action="store_true", help="print everything that happened")
    parser.add_argument("--traces", action="store_true", help="print each seed's trace hash")
    parser.add_argument("--json", type=Path, help="write the summary there, again after each seed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
