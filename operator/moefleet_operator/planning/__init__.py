"""What to do with one fleet, as pure functions: `observe(...)` -> `Observed`, `plan(observed, now)` -> `Plan`, `status(...)`.

Here belong phases of replicas, victims, the drain and rollout roads, free GPUs, conditions and their reasons.
Not here: how a pod looks (rendering), how many replicas the load needs (scaling), when and by whom it is done (core, kube).
`now` is unix seconds here, because the clocks that matter (pod conditions) are written by others. Nothing is remembered.
"""
