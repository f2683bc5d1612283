"""The policies of the field, each rewritten from its published algorithm: one module per family.

Here belong what an upstream decides from what it sees, with its constants as knobs at their shipped defaults, and in each
docstring where it is published and where we differ. Not here: the replicas it acts upon (fleet) and our own decision
(moefleet_operator.scaling, brought in by moefleet_replay.ours). To add one: a module with `SPECS`, and its name in registry.py.
Every spec has exactly one tuned knob: frontiers turn that one.
"""

from moefleet_replay.policies.registry import REGISTRY, PolicyRow, checked, parse, table, tuned_knob

__all__ = ["REGISTRY", "PolicyRow", "checked", "parse", "table", "tuned_knob"]
