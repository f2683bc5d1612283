"""What all models of the API share: camelCase on the wire, CEL rules beside fields, limits with names."""

from collections.abc import Iterable
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from .durations import DURATION_PATTERN, DURATION_TEXT_MAX

# The API server prices CEL rules by the largest object that the schema allows, so everything has a maximum.
LABELS_MAX: Final = 64
LABEL_KEY_MAX: Final = 317  # prefix 253, slash, name 63
LABEL_VALUE_MAX: Final = 63
ANNOTATION_VALUE_MAX: Final = 4096
MESSAGE_MAX: Final = 4096
DNS_LABEL_MAX: Final = 63
DNS_SUBDOMAIN_MAX: Final = 253


class ApiModel(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    def to_json(self) -> dict[str, Any]:
        """As the API server has it: camelCase, nothing that is None."""
        return self.model_dump(by_alias=True, exclude_none=True, mode="json")


def cel(
    rule: str, message: str, *, field_path: str | None = None, reason: str | None = None
) -> dict[str, str]:
    """One x-kubernetes-validations entry. `message` says what to do, not what the expression is."""
    entry = {"rule": rule, "message": message}
    if field_path is not None:
        entry["fieldPath"] = field_path
    if reason is not None:
        entry["reason"] = reason
    return entry


def rules(*entries: dict[str, str]) -> dict[str, Any]:
    return {"x-kubernetes-validations": list(entries)}


def extended(*parts: dict[str, Any]) -> dict[str, Any]:
    """json_schema_extra of several parts."""
    out: dict[str, Any] = {}
    for part in parts:
        out.update(part)
    return out


def list_map(*keys: str) -> dict[str, Any]:
    """Entries are merged by these keys: two managers may own entries of one list under server-side apply."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


LIST_ATOMIC: Final[dict[str, Any]] = {"x-kubernetes-list-type": "atomic"}
LIST_SET: Final[dict[str, Any]] = {"x-kubernetes-list-type": "set"}

_POSITIVE = cel("duration(self) > duration('0s')", "must be longer than 0s", reason="FieldValueInvalid")
_AT_MOST_A_WEEK = cel(
    "duration(self) <= duration('168h')", "must be at most 168h", reason="FieldValueInvalid"
)

# A Go-style duration above zero ("15m"); parse_duration_s reads it.
Duration = Annotated[
    str,
    Field(
        pattern=DURATION_PATTERN,
        max_length=DURATION_TEXT_MAX,
        json_schema_extra=rules(_POSITIVE, _AT_MOST_A_WEEK),
    ),
]
# The same, and zero means "not at all".
DurationOrZero = Annotated[
    str,
    Field(pattern=DURATION_PATTERN, max_length=DURATION_TEXT_MAX, json_schema_extra=rules(_AT_MOST_A_WEEK)),
]

# A decimal of at least zero as text: money and percentages must come back exactly as they were written.
DECIMAL_PATTERN: Final = r"^[0-9]{1,12}(\.[0-9]{1,9})?$"
Decimal = Annotated[str, Field(pattern=DECIMAL_PATTERN, max_length=22)]
# In status: may be negative (a margin can be).
SIGNED_DECIMAL_PATTERN: Final = r"^-?[0-9]{1,12}(\.[0-9]{1,9})?$"
SignedDecimal = Annotated[str, Field(pattern=SIGNED_DECIMAL_PATTERN, max_length=23)]

QUANTITY_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
# A Kubernetes quantity; "4" and 4 are both right in YAML.
Quantity = Annotated[
    str | int,
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": QUANTITY_PATTERN, "maxLength": 32}),
]


def free_object(description: str, **extra: Any) -> dict[str, Any]:
    """An object of Kubernetes' own API that is passed through: the API server checks it when the pod is made."""
    return {
        "type": "object",
        "description": description,
        "x-kubernetes-preserve-unknown-fields": True,
        **extra,
    }


def string_map(*, value_max: int, values: Iterable[str] = ()) -> Any:
    value: dict[str, Any] = {"type": "string", "maxLength": value_max}
    if values := list(values):
        value["enum"] = values
    return WithJsonSchema({"type": "object", "maxProperties": LABELS_MAX, "additionalProperties": value})


Labels = Annotated[dict[str, str], string_map(value_max=LABEL_VALUE_MAX)]
Annotations = Annotated[dict[str, str], string_map(value_max=ANNOTATION_VALUE_MAX)]
