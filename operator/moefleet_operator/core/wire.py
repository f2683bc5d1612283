"""Times as the API server writes them, for those who execute effects."""

from moefleet_operator.planning.facts import unix_seconds
from moefleet_operator.planning.timestamps import rfc3339, rfc3339_micro

__all__ = ["rfc3339", "rfc3339_micro", "unix_seconds"]
