"""Starts real replicas (server process and engine host) on loopback for tests, and reads what they log.

Belongs here: spawning, waiting for events in the log, stubs, looking at processes. Does not belong here: expectations.
"""

from moefleet_runtime_rig.process import ReplicaProcess, replica
from moefleet_runtime_rig.requests import Answer, ask, ask_trtllm, generate_request, trtllm_request
from moefleet_runtime_rig.wire import first_response_frames

__all__ = [
    "Answer",
    "ReplicaProcess",
    "ask",
    "ask_trtllm",
    "first_response_frames",
    "generate_request",
    "replica",
    "trtllm_request",
]
