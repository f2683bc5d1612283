"""The object as a whole."""

from typing import Annotated, Any, Final

from pydantic import Field

from .base import ApiModel
from .spec import MoEFleetSpec
from .status import MoEFleetStatus

API_GROUP: Final = "moefleet.io"
API_VERSION: Final = "moefleet.io/v1alpha1"
KIND: Final = "MoEFleet"
PLURAL: Final = "moefleets"


class ObjectMeta(ApiModel):
    """The part of metadata that we read. The API server owns the schema of metadata."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class MoEFleet(ApiModel):
    """A fleet of interchangeable replicas that serve one mixture-of-experts model, kept at the size its token throughput
    needs."""

    api_version: Annotated[str, Field(alias="apiVersion")] = API_VERSION
    kind: str = KIND
    metadata: ObjectMeta = ObjectMeta()
    spec: MoEFleetSpec
    status: MoEFleetStatus = MoEFleetStatus()

    @classmethod
    def parse(cls, body: Any) -> "MoEFleet":
        """From the API server's JSON. A null in it counts as absent, as everywhere in Kubernetes."""
        return cls.model_validate(_without_nulls(body))


def _without_nulls(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _without_nulls(v) for k, v in node.items() if v is not None}
    if isinstance(node, (list, tuple)):
        return [_without_nulls(v) for v in node]
    return node
