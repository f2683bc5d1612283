"""The real operator process against a real API server, with pods that kwok runs and stubs that answer for them.

Here belong the process with its environment, log and metrics, and the stubs of a replica's and a gateway's control port.
Not here: real runtimes and gateways (their own rigs, e2e), and what the operator should do (the tests).
"""

from .fleets import fleet
from .process import OperatorProcess
from .stubs import StubWorld

__all__ = ["OperatorProcess", "StubWorld", "fleet"]
