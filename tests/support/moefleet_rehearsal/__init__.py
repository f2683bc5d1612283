"""The real operator, gateway and Simulated replicas on a real cluster, and the replay of the demand that they saw.

`python -m moefleet_cluster run --nodes 1 --gpus 64 -- .venv/bin/python -m moefleet_rehearsal OUT` records (10 minutes, root);
`moefleet_rehearsal.compared` plays what was recorded and lists how the decisions differ.
"""
