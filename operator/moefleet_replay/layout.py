"""The columns of the kernel's arrays, and the numbers that kernel and reference share.

The compiled kernel is kept by the time of kernel.py: after a change here alone, touch that file (the test against the reference
fails otherwise).
"""

from __future__ import annotations

from typing import Final

# Steps ahead that a bucket ring covers, a power of two; longer answers go round and are put back.
RING: Final = 4096
# Classes of prompts and, where clients tell it, of max_tokens, both powers of two, for the output prediction: the gateway's, with its
# prior and memory (moefleet_gateway.picking.lengths). Of the second kind the first one is: not told.
CLASSES: Final = 32
LIMIT_CLASSES: Final = 33
PRIOR_OUTPUT_TOKENS: Final = 256.0
MEMORY: Final = 200.0
PRIOR_WEIGHT: Final = 4.0
# Answers that run are longer than those that end when a mix turns longer: the gateway's correction counts from the one to the other.
LEAST_CORRECTION: Final = 1.25
MOST_CORRECTION: Final = 4.0
# Per class, float64 `lengths`: mean answer of those that ended and its weight; running, time that all of the class were running
# and the number that ended (both fade with each that ends), when that was last counted; mean time from pick to end and its weight.
LENGTH_COLUMNS: Final = 8
C_MEAN, C_WEIGHT, C_RUNNING, C_BUSY_S, C_ENDED, C_AT, C_LASTED_S, C_LASTED_WEIGHT = range(8)
# As the gateway's picker: an output token weighs as two of the prompt, and a replica with so many waiting gets none.
DECODE_WEIGHT: Final = 2.0
QUEUE_AHEAD: Final = 32
# Latency histograms: bins 0.5 % wide from 0.1 ms on, to 80,000 s.
BINS: Final = 4096
BIN_LOW_S: Final = 1e-4
BIN_LOG: Final = 0.005
# By the minute of arrival in bins of so many of these: 4 % wide.
COARSE: Final = 8
# Requests and those inside both limits are counted by the minute of their arrival.
MINUTE_S: Final = 60.0
# Seconds of step times that are kept per replica.
RECENT_S: Final = 10
# At the ends of these seconds and of the one before.
RECENT_SLOTS: Final = RECENT_S + 1
SIGNALS: Final = 26

# Per replica, float64 `real`: end of the running step (inf: idle; without a step that runs, when the next one begins), its start,
# its prompt tokens; outstanding prompt tokens and predicted answers of all that is here (lengths have heavy tails: what runs
# longest has most to come, so nothing is taken off while it runs); context tokens that decode, reserved ones, those of prompts
# that are being read; when it became ready, since when it is idle; time and number of all of its steps.
REAL_COLUMNS: Final = 12
F_END, F_START, F_CHUNK, F_PREFILL, F_DECODE, F_KV, F_RESERVED, F_FILLED, F_READY_AT, F_IDLE_AT = range(10)
F_STEP_S, F_STEPS = 10, 11
# Per replica, int64 `whole`: takes new requests, is there at all, a step runs, steps done, sequences that decode, waiting, in
# prefill, of these done with this step, heads and tails of the two queues, the one admitted last.
WHOLE_COLUMNS: Final = 13
I_OPEN, I_ALIVE, I_RUNS, I_STEP, I_DECODING, I_WAITING, I_PREFILLING, I_DONE = range(8)
I_WAIT_HEAD, I_WAIT_TAIL, I_FILL_HEAD, I_FILL_TAIL, I_YOUNGEST = range(8, 13)
# int64 `gate`: the gateway's queue, the list of free slots, and whether clients tell how long their answer will be.
GATE_COLUMNS: Final = 6
G_HEAD, G_TAIL, G_COUNT, G_FREE, G_USED, G_TOLD = range(6)
# Per request slot, float64 `clocks`: arrival, first token, and when a replica was picked.
CLOCK_COLUMNS: Final = 3
A_ARRIVED, A_FIRST, A_PICKED = range(3)
# Per request slot, int32 `slots`, a cache line each: prompt, answer, prompt left, predicted answer, answer left beyond the ring,
# next slot of whatever list it is in, prompt tokens that a warm cache has, those that this replica had, place in the order of
# arrival, step of its bucket, tokens made before it was preempted, neighbours in the order of admission.
SLOT_COLUMNS: Final = 16
T_INPUT, T_OUTPUT, T_LEFT, T_PREDICTED, T_MORE, T_NEXT, T_CACHED, T_HIT, T_ID, T_DUE, T_PRODUCED = range(11)
T_OLDER, T_YOUNGER = 11, 12
# float64 `totals`: requests, ended ones, of these those inside each limit and inside both; prompt and predicted answer tokens that
# wait in the gateway; preemptions, requests begun again after a death.
TOTALS: Final = 9
X_REQUESTS, X_ENDED, X_TTFT_OK, X_TPOT_OK, X_OK, X_HELD_PREFILL, X_HELD_DECODE = range(7)
X_PREEMPTIONS, X_RETRIES = 7, 8
# int64 `limits`.
L_SEQUENCES, L_KV, L_CHUNK, L_PREEMPTING = range(4)
