from .routing import BaseMoeRoutingMethod

__all__ = ["BaseMoeRoutingMethod"]
