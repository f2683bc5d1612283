"""The CustomResourceDefinition, made from the types. `python -m moefleet_operator.api.crd` writes it into the chart."""

import sys
from pathlib import Path
from typing import Any, Final

from moefleet_operator.names import FLEET_NAME_MAX

from .base import cel
from .fleet import API_GROUP, KIND, PLURAL, MoEFleet
from .spec import MoEFleetSpec
from .status import MoEFleetStatus
from .structural import structural_schema

CRD_FILE: Final = Path("charts/moefleet/files/crds/moefleets.yaml")
HEADER: Final = "# Generated from operator/moefleet_operator/api by `make generate`; do not edit.\n"

# A fleet's Service has its name, and Service names are stricter than names of custom resources.
_NAME_RULES: Final = (
    cel(
        f"self.metadata.name.size() <= {FLEET_NAME_MAX}",
        f"metadata.name must have at most {FLEET_NAME_MAX} characters: pods are named <fleet>-<revision>-<slot>",
    ),
    cel(
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name must be lower-case letters, digits and '-', start with a letter and have no dots: "
        "it is also the name of a Service",
    ),
)


def _ready(field: str) -> str:
    return f'.status.conditions[?(@.type=="Ready")].{field}'


# (name, type, JSON path, priority, description); priority 1 is shown by -o wide.
_COLUMNS: Final[tuple[tuple[str, str, str, int, str], ...]] = (
    ("Ready", "string", _ready("status"), 0, "Condition Ready."),
    ("Replicas", "string", ".status.replicasSummary", 0, "Ready and desired replicas."),
    (
        "Tok/s",
        "integer",
        ".status.throughput.outputTokensPerSecond",
        0,
        "Generated tokens per second of the whole fleet.",
    ),
    ("Util", "integer", ".status.throughput.utilizationPercent", 0, "Load in percent of capacity."),
    ("Model", "string", ".spec.model.name", 0, "What requests ask for."),
    ("Reason", "string", _ready("reason"), 0, "Reason of condition Ready."),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Age of the fleet."),
    ("Mode", "string", ".spec.scaling.mode", 1, "Who decides the number of replicas."),
    ("Revision", "string", ".status.revision", 1, "Revision that new replicas get."),
    ("Decision", "string", ".status.scaling.lastDecision.reason", 1, "Reason of the last scaling decision."),
    ("Start p90", "string", ".status.coldStart.p90", 1, "Cold start, nine of ten."),
    ("Cost/M", "string", ".status.economics.costPerMillionTokens", 1, "Cost of a million tokens."),
)


def custom_resource_definition() -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{API_GROUP}"},
        "spec": {
            "group": API_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": "moefleet",
                "shortNames": ["mofl"],
                "categories": ["moefleet"],
            },
            "versions": [
                {
                    "name": "v1alpha1",
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [_column(*c) for c in _COLUMNS],
                    "schema": {
                        "openAPIV3Schema": {
                            "description": " ".join((MoEFleet.__doc__ or "").split()),
                            "type": "object",
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": structural_schema(MoEFleetSpec),
                                "status": structural_schema(MoEFleetStatus, defaults=False),
                            },
                            "x-kubernetes-validations": list(_NAME_RULES),
                        }
                    },
                }
            ],
        },
    }


def _column(name: str, kind: str, path: str, priority: int, description: str) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path, "description": description}
    if priority:
        column["priority"] = priority
    return column


def crd_yaml() -> str:
    # Local: only the generator writes YAML; images import this package without PyYAML.
    import yaml

    class NoAliases(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    # `yaml.dump` is untyped in its result when a dumper is given.
    text = yaml.dump(
        custom_resource_definition(), Dumper=NoAliases, sort_keys=False, width=120, allow_unicode=True
    )
    return HEADER + str(text)


def main(arguments: list[str]) -> int:
    target = Path(arguments[0]) if arguments else CRD_FILE
    if not arguments and not target.parent.parent.parent.is_dir():
        print(
            f"wanted to write {target} from the repository's root; name another file as argument",
            file=sys.stderr,
        )
        return 2
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(crd_yaml(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
