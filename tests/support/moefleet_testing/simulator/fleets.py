"""A fleet of a story: what its user asked for last, what it should have when all is quiet, and what users do to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from moefleet_operator.api import API_VERSION
from moefleet_operator.core.events import DecisionMade, Key

from .api import Api, Object, uid_of
from .rules import Rules
from .schedule import Act, FleetPlan
from .world import World

NAMESPACE = "models"


@dataclass(slots=True)
class FleetStory:
    key: Key
    plan: FleetPlan
    uid: str
    mode: str
    low: int
    high: int
    # spec.replicas, which counts in External mode only.
    replicas: int
    # What scaling says; None: it does not know.
    advice: int | None
    strategy: str
    speed: int = 1
    # Speeds that it had, newest last: a revert goes back to the one before.
    before: list[int] = field(default_factory=list)
    # Something took a replica or a gateway away: requests may be lost until all has settled again.
    disturbed: bool = True
    # There is no such fleet at the moment.
    gone: bool = False
    broken: bool = False

    @property
    def asleep(self) -> bool:
        return self.target == 0

    @property
    def target(self) -> int | None:
        """What it should have when all is quiet; None: what it has."""
        match self.mode:
            case "External":
                return 0 if self.replicas == 0 else self.bounded(self.replicas)
            case "Automatic":
                if self.advice is None:
                    return None
                return 0 if self.advice == 0 and self.plan.sleeps else self.bounded(self.advice)
            case _:
                return None

    def bounded(self, wanted: int) -> int:
        return min(max(wanted, self.low), self.high)

    def decision(self) -> DecisionMade:
        reason = "DemandUnknown" if self.advice is None else "Idle" if self.advice == 0 else "DemandSteady"
        return DecisionMade(self.key, self.advice, reason, "as the story has it")


class Users:
    """Everything that people do to fleets through the API server, in good order."""

    def __init__(self, world: World, api: Api, rules: Rules, fleets: list[FleetStory]) -> None:
        self.world, self.api, self.rules, self.fleets = world, api, rules, fleets
        self._speeds = 1
        self.acts: dict[str, Callable[[FleetStory, Act], None]] = {
            "scale": self.scale,
            "edit": self.edit,
            "edit-burst": self.edit_burst,
            "revert": self.revert,
            "bounds": self.bounds,
            "mode": self.mode,
            "strategy": self.strategy,
            "sleep": self.sleep,
            "recreate": self.recreate,
            "delete-foreground": self.delete_foreground,
        }

    def make(self, index: int, plan: FleetPlan) -> FleetStory:
        key = Key(NAMESPACE, f"fleet-{index}")
        story = FleetStory(key, plan, "", plan.mode, plan.low, plan.high, plan.low, plan.low, plan.strategy)
        if plan.mode == "Advisory":
            story.advice = None
        self.fleets.append(story)
        self._create(story)
        return story

    def _create(self, story: FleetStory) -> None:
        made = self.api.create("MoEFleet", body_of(story))
        if made is None:
            # The one before is still being deleted.
            self.world.after(2.0, lambda: self._create(story))
            return
        story.uid, story.gone, story.disturbed = uid_of(made), False, True
        if story.advice is not None:
            # Scaling goes by the name: what it says of the fleet before is said of this one until it says something else.
            self.rules.advised(story.uid, story.advice)
        self.rules.aim(story.uid, story.bounded(story.low))
        self._aim(story)
        self.world.tell(f"{story.key} made: {story.mode}, {story.low} to {story.high}, {story.strategy}")

    def make_again(self, story: FleetStory) -> None:
        if not story.gone:
            self._create(story)

    def apply(self, story: FleetStory) -> None:
        self._write(story, "applied again")

    def _aim(self, story: FleetStory) -> None:
        target = story.target
        if target is not None:
            self.rules.aim(story.uid, target)
        else:
            fleet = self.api.get("MoEFleet", story.key)
            has = ((fleet or {}).get("status") or {}).get("desiredReplicas")
            if has is not None:
                # A fleet that slept is woken where nobody would wake it later.
                self.rules.aim(story.uid, has)
                self.rules.aim(story.uid, story.bounded(has))

    def _write(self, story: FleetStory, what: str) -> None:
        """The whole spec, as `kubectl apply` would."""
        self.world.tell(f"{story.key}: {what}")
        spec = body_of(story)["spec"]

        def write(o: Object) -> None:
            o["spec"] = spec

        if not story.gone:
            self.api.update("MoEFleet", story.key, write)
            self._aim(story)

    def scale(self, story: FleetStory, act: Act) -> None:
        number = story.low + int(act.what * (story.high - story.low + 1))
        if story.mode == "External":
            story.replicas = 0 if act.long < 0.1 else number
            self._write(story, f"replicas {story.replicas}")
        else:
            story.advice = number
            self.world.tell(f"{story.key}: scaling says {number}")
            self.rules.advised(story.uid, number)
            if self.rules.may_follow_scaling(story.uid):
                self.rules.aim(story.uid, story.bounded(number))
            self._aim(story)

    def sleep(self, story: FleetStory, _act: Act) -> None:
        if story.mode == "Automatic" and story.plan.sleeps:
            story.advice = 0
            self.world.tell(f"{story.key}: scaling says that nobody calls")
            self._aim(story)

    def wake(self, story: FleetStory) -> None:
        """A request came while it slept."""
        if story.mode == "Automatic" and story.advice == 0:
            story.advice = max(1, story.low)
            self.world.tell(f"{story.key}: scaling wakes it")
            self._aim(story)

    def edit(self, story: FleetStory, _act: Act | None = None) -> None:
        self._speeds += 1
        story.before.append(story.speed)
        story.speed = self._speeds
        self._write(story, f"speed {story.speed}")

    def edit_burst(self, story: FleetStory, act: Act) -> None:
        for index in range(3 + int(act.what * 5)):
            self.world.after(index * (0.1 + act.long * 6.0), lambda: self.edit(story, act))

    def revert(self, story: FleetStory, act: Act) -> None:
        if not story.before:
            self.edit(story, act)
            self.world.after(2.0 + 30.0 * act.what, lambda: self.revert(story, act))
            return
        story.speed, story.before[-1] = story.before[-1], story.speed
        self._write(story, f"back to speed {story.speed}")

    def bounds(self, story: FleetStory, act: Act) -> None:
        story.high = 1 + int(act.what * story.plan.high)
        story.low = 1 + int(act.long * story.high)
        if story.advice is not None and story.mode == "Automatic" and story.advice > 0:
            # Scaling keeps the bounds by itself at its next tick.
            story.advice = story.bounded(story.advice)
        # What was asked for a moment ago may be what is known, and new bounds hold for it, too.
        for _, asked in self.rules.of(story.uid).targets[-4:]:
            self.rules.aim(story.uid, story.bounded(asked))
        self._write(story, f"{story.low} to {story.high} replicas")

    def mode(self, story: FleetStory, act: Act) -> None:
        story.mode = ("Automatic", "External", "Advisory")[int(act.what * 3)]
        if story.mode == "Automatic" and story.advice is None:
            story.advice = story.low
        story.replicas = max(1, story.replicas)
        if story.mode == "Automatic":
            # From now on it is followed, and the newest word may not have been heard.
            for advised in self.rules.advice(story.uid):
                self.rules.aim(story.uid, story.bounded(advised))
        self._write(story, f"mode {story.mode}")

    def strategy(self, story: FleetStory, act: Act) -> None:
        story.strategy = ("Auto", "Surge", "InPlace")[int(act.what * 3)]
        self._write(story, f"strategy {story.strategy}")

    def recreate(self, story: FleetStory, act: Act) -> None:
        self._delete(story, act, lambda: self.api.remove("MoEFleet", story.key), "deleted")

    def delete_foreground(self, story: FleetStory, act: Act) -> None:
        self._delete(story, act, lambda: self.api.delete_foreground(story.key), "deleted in the foreground")

    def _delete(self, story: FleetStory, act: Act, delete: Callable[[], None], what: str) -> None:
        self.world.tell(f"{story.key} {what}")
        story.gone = story.disturbed = True
        delete()
        story.broken = False
        self.world.after(0.2 + 40.0 * act.what * act.long, lambda: self._create(story))

    def mend(self, story: FleetStory) -> None:
        if story.broken:
            story.broken = False
            self._write(story, "spec is put right")


def body_of(story: FleetStory) -> dict[str, Any]:
    plan = story.plan
    args: dict[str, Any] = {"speed": story.speed}
    scaling: dict[str, Any] = {
        "mode": story.mode,
        "minReplicas": story.low,
        "maxReplicas": story.high,
        **({"idle": {"scaleToZeroAfter": "30m"}} if plan.sleeps else {}),
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "MoEFleet",
        "metadata": {"namespace": story.key.namespace, "name": story.key.name},
        "spec": {
            "model": {
                "name": f"model-{story.key.name}",
                "source": "file:///models/tiny",
                "contextLength": 4096,
            },
            "engine": {"type": "Simulated", "image": "runtime:1", "args": args},
            "replica": {"gpus": 8},
            "scaling": scaling,
            **({"replicas": story.replicas} if story.mode == "External" else {}),
            "limits": {"streamDuration": f"{plan.stream_s}s"},
            "rollout": {
                "strategy": story.strategy,
                "maxUnavailable": 1,
                "canary": {"window": f"{plan.canary_s}s"},
                "drainTimeout": f"{plan.drain_s}s",
            },
        },
        "status": {},
    }
