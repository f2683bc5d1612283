"""`make demo`: the main job on a real cluster, for people to watch and for machines to check.

Belongs here: the road (install, fleet, prompts, load, scaling, spec change), its live table, plot and report.
Does not: cluster building (moefleet_cluster), the client (moefleet_load), kubectl and helm (moefleet_e2e).
"""
