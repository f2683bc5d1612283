"""How the comparison is made, in words: what an outsider needs to repeat it, and where to attack it."""

from __future__ import annotations

from typing import Final

# (heading, paragraphs). Numbers of one study (traces, seeds, hashes) are put beside them by the report.
METHOD: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    (
        "What is simulated",
        (
            "Every single request, in virtual time. A replica is one pod with 8 GPUs that batches continuously: a step takes T = a + b·(prompt tokens) + c·(sequences) + d·(tokens in cache), prompts are computed in chunks within the token budget of a step, sequences wait for slots and for KV cache, first come first served. The gateway sends a request to the ready replica with the least outstanding work; a replica with 32 queued gets none, and requests then wait in the gateway, first in first out. Nothing is shed or abandoned; after the last arrival all requests run to their end.",
            "A start takes a time drawn from the lognormal of the study; one start in ten fails and begins again, billed meanwhile. The k-th start of a run has the same draw for every policy. A replica that is scaled down takes no new requests, finishes its own, and is billed until then; pending replicas are cancelled first, youngest first. Every run starts with the ceiling of the need of its first second, ready; nothing is excluded as warm-up.",
        ),
    ),
    (
        "What arrives",
        (
            "Traces of rates (10-minute windows) are made into requests: linear between window centres, times a lognormal AR(1) of mean 1 (sigma 0.12, time constant 90 s); counts per second are negative binomial with index of dispersion clip(agg_idc, 2, 50); times are uniform in the second; input and output lengths are drawn together from the 4,096 pairs of their 6-hour pool. Windows below 1 request/s are gaps of the data: interpolated, and named in a warning. Traces of requests are replicated or thinned, never compressed in time.",
            "Chance comes from the seed alone, in streams of its own per purpose, so all policies meet the same requests: the sha256 of the arrivals of each segment and seed stands below. Two runs with the same arguments give the same numbers, but for wall_s.",
        ),
    ),
    (
        "What is counted",
        (
            "attainment: share of requests with time to first token and mean time per output token both inside the objective. A request that never ends is missed. gpu_hours: 8 for each hour of a pod, from its creation to the end of its drain, failed starts included. cost_per_mtok: GPU-hours times their price over millions of prompt and output tokens together. scaling_actions: changes of the target. Numbers of a segment are means over seeds with the 95 % interval of Student's t; sums are over the headline segments. The intervals cover the chance of arrivals, lengths and starts on these days, not the choice of days.",
            "A setting holds a segment when its mean attainment there is at least the criterion's. The cheapest setting of a policy is picked after the fact, on the very days that it is judged on; ours is judged at its default. The table of settings tuned elsewhere picks on the tuning segments and shows the others.",
        ),
    ),
    (
        "Where to attack it",
        (
            "The step model is a straight line with the coefficients of the calibration, which no hardware of this project has confirmed: hence two sets. Model-based policies, ours among them, are given the true coefficients; the online fit is not what is compared here. Output lengths are those of the trace, whatever the latency; users who leave or try again are not simulated. Prefix caches count only where the trace records prefixes. Rates are 10-minute means: what happens inside a window is our generator, so `--arrivals step` is worth a look. Peers are rewritten from their published algorithms (`moefleet policies` names versions and lines); what their controllers add around them (API latency, metrics pipelines, schedulers) is left out, in their favour.",
            "What pruning left out is hollow in the plots and marked in the tables; `--no-prune` runs everything. Change any number of the study file and run it again: results are cached by arguments, trace bytes and code.",
        ),
    ),
)
