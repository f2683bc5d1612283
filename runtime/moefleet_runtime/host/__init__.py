"""The engine host: a second process with the engine in its main thread, and the pipe to it.

Belongs here: the messages and their framing, the host's own main, the server's side of it (spawn, supervise, reap).
A crash of the engine (a CUDA fault, an out-of-memory kill, an abort in a library) then ends this process and not the
one that holds the streams. Does not belong here: gRPC, and anything that knows one engine from another.
"""
