"""A person's hands on a real cluster: kubectl, helm and manifests, for e2e tests, demo and bench.

Belongs here: what a user would type, and waiting for what a user would wait for. Does not: cluster building (moefleet_cluster),
requests (moefleet_load), assertions (tests). Nothing here imports the operator: the tests see what users see.
"""
