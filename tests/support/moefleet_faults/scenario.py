"""What a scenario file may say. A wrong file is refused with the field, before a cluster is started for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

FOLDER = Path(__file__).resolve().parents[2] / "faults"

Whom = Literal["nobody", "replica", "gateway", "node"]
Seconds = Annotated[float, Field(ge=0, le=3600)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cluster(Strict):
    """`system_on_first_node`: operator and gateways are installed while the other nodes are cordoned."""

    nodes: int = Field(1, ge=1, le=8)
    gpus: int = Field(64, ge=8, le=64, description="fake GPUs of each node")
    quick_node_failure: bool = False
    system_on_first_node: bool = False


class Fleet(Strict):
    """`changes` are merged into the spec of `moefleet_e2e.fleets`."""

    engine: Literal["Simulated", "Torch"] = "Simulated"
    replicas: int = Field(2, ge=1, le=8)
    changes: dict[str, Any] = {}


class Load(Strict):
    """Requests a second of our client and of a plain one. `plain_through` pods: each gateway pod by its own address."""

    ours_per_s: float = Field(1.0, gt=0, le=50)
    plain_per_s: float = Field(1.0, gt=0, le=50)
    output_tokens: int = Field(80, ge=1, le=2000)
    running: int = Field(8, ge=1, description="streams that run before the first step")
    plain_through: Literal["service", "pods"] = "service"


class Wanted(Strict):
    """A state of the fleet; all that is named must hold at once, and a new request be answered."""

    replicas: int = Field(2, ge=0)
    rolled: bool = Field(False, description="every pod is of one revision, which none of the pods before was")
    settled: bool = Field(
        False, description="the operator has seen the newest spec, and every pod is of its revision"
    )
    off_node: int | None = None
    release_back: bool = Field(False, description="operator and gateway pods are all ready")
    restarted: bool = Field(
        False, description="a container of fleet or release has begun again, or a pod is another one"
    )
    gone: bool = Field(False, description="nothing of fleet or release is left in their namespaces")
    limit_s: Seconds = 240


class Step(Strict):
    after_s: Seconds = 0
    then: Wanted | None = None


class Kill(Step):
    """SIGKILL. `busiest`: the replica in which most streams run; `back_after_s`: when the API server is started again
    (kubelet and containerd are by the node, as systemd does)."""

    do: Literal["kill"]
    what: Literal[
        "operator", "picker", "envoy", "engine-host", "replica", "kubelet", "containerd", "api-server"
    ]
    whom: Literal["leader", "all", "busiest", "one"] = "one"
    back_after_s: Seconds = 10


class Freeze(Step):
    """SIGSTOP for kubelet, containerd, shims and every container of a node: it answers nothing, its kernel still does."""

    do: Literal["freeze", "thaw"]
    node: int = Field(1, ge=0)


class Cut(Step):
    """Packets are dropped in the pod's own network namespace, both ways and without an answer, until `heal`."""

    do: Literal["cut", "heal"]
    between: Literal["gateways-and-busiest-replica", "leader-and-api-server", "operators-and-api-server"]


class Edit(Step):
    do: Literal["edit"]
    spec: dict[str, Any]


class Edits(Step):
    """Numbers of `path` counted up with each edit, evenly over the time."""

    do: Literal["edits"]
    path: list[str]
    first: int
    count: int = Field(500, ge=1)
    over_s: Seconds = 60


class Scale(Step):
    do: Literal["scale"]
    replicas: int = Field(ge=0)


class Occupy(Step):
    """A pod of somebody else's that takes GPUs; `free` lets it go."""

    do: Literal["occupy", "free"]
    gpus: int = Field(0, ge=0, description="0: all that are left")


class Drain(Step):
    """kubectl drain, then uncordon."""

    do: Literal["drain"]
    node: int = Field(1, ge=0)


class Helm(Step):
    do: Literal["helm"]
    verb: Literal["upgrade", "rollback", "uninstall"]
    values: dict[str, Any] = {}


class DeleteFleet(Step):
    do: Literal["delete-fleet"]


class Quiet(Step):
    """No new requests; what runs goes on."""

    do: Literal["quiet"]


Any_ = Annotated[
    Kill | Freeze | Cut | Edit | Edits | Scale | Occupy | Drain | Helm | DeleteFleet | Quiet,
    Field(discriminator="do"),
]


class Hold(Strict):
    """What must be true of the requests. Every answer that ends well must have the right tokens and usage in any case."""

    touched: Whom = Field("nobody", description="whose streams may break")
    ours_resumed_percent: float = Field(95, ge=0, le=100)
    plain_statuses: list[str] = Field([], description="with which streams of the touched may end")
    new_may_fail: int = Field(
        0, ge=0, description="plain requests begun after the first step that may be refused"
    )


class Scenario(Strict):
    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=40)
    says: str = Field(min_length=10, description="what it shows, for the table")
    short: bool = Field(False, description="part of `make test`")
    cluster: Cluster = Cluster()
    fleet: Fleet = Fleet()
    load: Load = Load()
    steps: list[Any_] = Field(min_length=1)
    repeat_minutes: float = Field(0, ge=0, description="0: the steps once; else again and again for so long")
    until: Wanted
    recovery_from: Literal["first", "last"] = Field(
        "first", description="step from which recovery is counted"
    )
    rest_s: Seconds = Field(5, description="load after recovery")
    hold: Hold = Hold()

    @model_validator(mode="after")
    def _statuses_are_named_where_streams_may_break(self) -> Scenario:
        if (self.hold.touched == "nobody") != (not self.hold.plain_statuses) and not self.hold.new_may_fail:
            raise ValueError("hold.plain_statuses: named exactly where hold.touched is not nobody")
        return self


def read(path: Path) -> Scenario:
    """
    Raises:
        ValueError: with file and field.
    """
    try:
        found = Scenario.model_validate(yaml.safe_load(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if found.name != path.stem:
        raise ValueError(f"{path.name}: its name is {found.name!r}; file and name must agree")
    return found


def read_all(folder: Path = FOLDER) -> list[Scenario]:
    return [read(path) for path in sorted(folder.glob("*.yaml"))]
