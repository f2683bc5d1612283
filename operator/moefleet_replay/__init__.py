"""Traffic against scaling policies in virtual time: what each costs, and what it holds of the objective.

Here belong traces and the arrivals made from them, a fleet of virtual replicas behind a router, the policies of the field, and
the reports. Not here: what one replica does in a step (moefleet_perf) and our own decision (moefleet_operator.scaling), which
both run here as they run in production. Units: seconds, tokens, requests, replicas (one replica is one pod with 8 GPUs).
Everything draws its chance from one seed: the same arguments give the same bytes, and every policy meets the same arrivals.
"""
