"""The operator as a process around the core: what is watched becomes events, what the core asks for gets done.

Here belong kopf (watching only, in a thread of its own), the resync LISTs, the inbox, the lanes in which effects run,
the loop that feeds the core, and the HTTP endpoints. Handlers put events into the inbox and do nothing else.
Not here: any decision. What an effect does is in `kube`; what should be done is in `core`.
"""
