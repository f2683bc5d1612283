"""The process in a replica pod: a gRPC server process (PID 1) and an engine host process behind it.

Belongs here: serving (the gRPC services), host (the two processes and the pipe between them), engine (what makes tokens),
life (the state machine that says whether this replica takes work), configuration, tokenizer, metrics.
Does not belong here: which replica a request goes to (moefleet_gateway), how many replicas there are (moefleet_operator),
how fast a replica could be (moefleet_perf). Nothing here talks to the Kubernetes API.
"""
