"""A cluster in virtual time around the real core: API server, nodes, replicas with streams, gateways, traffic, two operators.

Everything that happens is an event on one heap, drawn from one seeded generator, so a seed is a whole story that can be
told again. The simulated parts are as slow, as late and as unreliable as the real ones; the core is the shipped one.
Here belong the parts of that world and the rules that it checks; scenarios are in `scenario`, the command in `simulate`.
"""
