"""A real Kubernetes without a container engine: built from Go modules, started as plain processes, gone without a trace.

Belongs here: building the programs and test images, a control plane without root (`ControlPlane`), nodes inside namespaces with
root (`python -m moefleet_cluster run`), fake nodes and fake GPUs, pytest fixtures. Does not: anything that knows what moefleet
does with a cluster (moefleet_e2e, moefleet_bench, moefleet_demo). `build` and the control plane need only the standard library.
"""

from .control_plane import AuditedWrite, ControlPlane
from .kubectl import Kubectl

__all__ = ["AuditedWrite", "ControlPlane", "Kubectl"]
