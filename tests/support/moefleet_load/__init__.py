"""Load for tests, demo and bench: real gRPC streams whose every end is accounted for.

Belongs here: what a client does and sees. Does not: starting servers, judging results (tests do), traffic models (moefleet_replay).
A request ends in exactly one of ok, failed (no token came) or cut (tokens came, the end did not).
"""
