"""A cluster in virtual time around the real core: API server, nodes, replicas with streams, gateways, traffic, two operators.

A schedule (`schedule`) is drawn from the seed before anything happens, as data: fleets, and episodes of what users do
(`fleets`) and of faults (`faults`). `scenario` plays it; everything that happens then is an event on one heap (`world`),
with a generator of its own for each part, so a seed is a whole story that can be told again, and shorter (`shrink`). The
rules are checked at every write (`rules`); when faults end, each fleet has to settle (`settled`). The command is in
`moefleet_testing.simulate`, bugs that it has to find are in `moefleet_testing.planted`.
"""
