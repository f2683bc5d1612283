"""Which replica gets a request, and what is counted about it. Pure: time comes in as `now`, nothing is awaited.

Belongs here: the model table, the endpoint life (offered, registered, withdrawn), outstanding work, admission,
prediction of lengths, demand counters. Does not belong here: protobuf, gRPC, Envoy's words, Kubernetes objects.
"""
