"""Breaking a real cluster on purpose, under load all the while, and saying what came of it.

Scenarios are tests/faults/*.yaml (`scenario.py`); `make faults` runs them on clusters of its own and writes a table.

Belongs here: wounds (kill, freeze, cut, edit, helm), two kinds of clients whose every token is checked, the verdict.
Does not: cluster building (moefleet_cluster), what a user types (moefleet_e2e). It touches only processes and network namespaces
that the cluster tool has made: the runner sees no others, it lives in that cluster's pid namespace.
"""
