"""The server process: gRPC services in front of the engine client.

Belongs here: the services (inference, trtllm, replica), what they share (admission, generation, problems), health,
metrics and the composition of it all. Does not belong here: scheduling of tokens (the engine's business) and choosing
between replicas (the gateway's).
"""
