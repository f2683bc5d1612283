"""The operator's brain without I/O: events go in, effects come out, and the same core runs in production and simulation.

Here belong the keyed queue, the Lease, the store of observed objects and the loop gather -> plan -> effects -> status.
Nothing here awaits, reads a clock, draws a random number or calls the API server: `now`, `wall` and the generator are given.
What to do with one fleet is decided in `planning`; how a pod looks in `rendering`; what an effect does in `kube`.
"""
