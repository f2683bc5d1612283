"""`moefleet`, also as `kubectl-moefleet`: ask a gateway, and see what fleets do.

Here belong the commands, what they print, and their exit codes. Two borders: a gateway by gRPC and the API server.
`probe` is the one request of `helm test` and needs only gRPC; nothing in this file imports typer, so the gateway's image
can run it.
"""
