"""The fleet between two ticks, compiled: replicas with continuous batching behind the gateway's router.

The same as `reference.py`, request by request. What makes it quick: a sequence that decodes ends after a known number of steps,
so each replica keeps a ring of buckets by step number, and a step costs the requests that begin or end in it, not those that run.
All state is in flat arrays (`FleetArrays`), so that Python may look and change replicas between two calls. Times are seconds of
the run, tokens are tokens.
"""

from __future__ import annotations

from typing import Final

import numba as nb
import numpy as np

# Steps ahead that a bucket ring covers; longer answers go round and are put back.
RING: Final = 4096
# Classes of prompts, powers of two, for the output prediction: the gateway's prior and memory (moefleet_gateway.picking.lengths).
CLASSES: Final = 32
PRIOR_OUTPUT_TOKENS: Final = 256.0
MEMORY: Final = 200.0
PRIOR_WEIGHT: Final = 4.0
# As the gateway's picker: an output token weighs as two of the prompt, and a replica with so many waiting gets none.
DECODE_WEIGHT: Final = 2.0
QUEUE_AHEAD: Final = 32
# Latency histograms: bins 0.5 % wide from 0.1 ms on, to 40,000 s.
BINS: Final = 4096
BIN_LOW_S: Final = 1e-4
BIN_LOG: Final = 0.005
WINDOW_S: Final = 300.0

# Per replica, float64: end of the running step (inf: idle), its start, its prompt tokens; outstanding prompt tokens and
# predicted answers of all that is here (lengths have heavy tails: what runs longest has most to come, so nothing is taken off while it runs); context tokens that decode, reserved ones; when it became ready; time and number of steps of late.
F_END, F_START, F_CHUNK, F_PREFILL, F_DECODE, F_KV, F_RESERVED, F_READY_AT, F_STEP_S, F_STEPS = range(10)
# Per replica, int64: takes new requests, is there at all, steps done, sequences that decode, waiting, in prefill, of these done
# with this step, and the heads and tails of the two queues.
(
    I_OPEN,
    I_ALIVE,
    I_STEP,
    I_DECODING,
    I_WAITING,
    I_PREFILLING,
    I_DONE,
    I_WAIT_HEAD,
    I_WAIT_TAIL,
    I_FILL_HEAD,
    I_FILL_TAIL,
) = range(11)
# The gateway's queue, and the list of free slots, int64.
G_HEAD, G_TAIL, G_COUNT, G_FREE, G_USED = range(5)
# Per request slot: float64 arrival and first token; int32 prompt, answer, prompt left, predicted answer, answer left beyond the
# ring, next slot of whatever list it is in, computed prompt tokens saved by a warm cache.
A_ARRIVED, A_FIRST = range(2)
T_INPUT, T_OUTPUT, T_LEFT, T_PREDICTED, T_MORE, T_NEXT, T_CACHED, T_ID = range(8)
SLOT_COLUMNS: Final = 8
# Totals, float64.
# Requests, ended ones, those inside each limit and inside both; prompt and predicted answer tokens that wait in the gateway.
X_REQUESTS, X_ENDED, X_TTFT_OK, X_TPOT_OK, X_OK, X_HELD_PREFILL, X_HELD_DECODE = range(7)
SIGNALS: Final = 26


@nb.njit(cache=True)
def _bin(value_s):  # type: ignore[no-untyped-def]
    if value_s <= BIN_LOW_S:
        return 0
    return min(int(np.log(value_s / BIN_LOW_S) / BIN_LOG) + 1, BINS - 1)


@nb.njit(cache=True)
def _class(tokens):  # type: ignore[no-untyped-def]
    k = 0
    while tokens > 1 and k < CLASSES - 1:
        tokens >>= 1
        k += 1
    return k


@nb.njit(cache=True)
def begin(r, now, real, whole, slots, model, limits, row):  # type: ignore[no-untyped-def]
    """Starts the next step of replica `r`, or leaves it idle: admission, then prompt chunks, as VirtualReplica.run_step."""
    while whole[r, I_WAITING] > 0 and whole[r, I_PREFILLING] + whole[r, I_DECODING] < limits[0]:
        slot = whole[r, I_WAIT_HEAD]
        need = slots[slot, T_INPUT] + slots[slot, T_OUTPUT]
        if real[r, F_RESERVED] + need > limits[1]:
            break
        real[r, F_RESERVED] += need
        whole[r, I_WAIT_HEAD] = slots[slot, T_NEXT]
        whole[r, I_WAITING] -= 1
        slots[slot, T_NEXT] = -1
        if whole[r, I_PREFILLING] == 0:
            whole[r, I_FILL_HEAD] = slot
        else:
            slots[whole[r, I_FILL_TAIL], T_NEXT] = slot
        whole[r, I_FILL_TAIL] = slot
        whole[r, I_PREFILLING] += 1
        row[6] += 1.0
    n = whole[r, I_DECODING]
    left = whole[r, I_PREFILLING]
    if left == 0 and n == 0:
        real[r, F_END] = np.inf
        return
    room = limits[2] - n
    if left > 0 and room < 1:
        room = 1
    used = 0
    done = 0
    slot = whole[r, I_FILL_HEAD]
    while left > 0 and used < room:
        part = min(slots[slot, T_LEFT], room - used)
        slots[slot, T_LEFT] -= part
        used += part
        if slots[slot, T_LEFT] > 0:
            break
        done += 1
        left -= 1
        slot = slots[slot, T_NEXT]
    real[r, F_CHUNK] = used
    whole[r, I_DONE] = done
    real[r, F_START] = now
    real[r, F_END] = now + (model[0] + model[1] * used + model[2] * n + model[3] * real[r, F_KV])


@nb.njit(cache=True)
def submit(r, slot, now, real, whole, slots, warm_s):  # type: ignore[no-untyped-def]
    """Request `slot` joins the queue of replica `r`. A cold cache knows nothing; after `warm_s` it knows what the trace says."""
    cached = slots[slot, T_CACHED]
    if cached > 0:
        warm = 1.0 if warm_s <= 0.0 else min(1.0, (now - real[r, F_READY_AT]) / warm_s)
        cached = min(int(cached * warm), slots[slot, T_INPUT] - 1)
    slots[slot, T_LEFT] = slots[slot, T_INPUT] - cached
    slots[slot, T_NEXT] = -1
    if whole[r, I_WAITING] == 0:
        whole[r, I_WAIT_HEAD] = slot
    else:
        slots[whole[r, I_WAIT_TAIL], T_NEXT] = slot
    whole[r, I_WAIT_TAIL] = slot
    whole[r, I_WAITING] += 1
    real[r, F_PREFILL] += slots[slot, T_LEFT]
    real[r, F_DECODE] += slots[slot, T_PREDICTED]


@nb.njit(cache=True)
def advance(  # type: ignore[no-untyped-def]
    t0,
    t1,
    at,
    inp,
    out,
    cached,
    real,
    whole,
    ring,
    clocks,
    slots,
    gate,
    lengths,
    series,
    windows,
    ttft_bins,
    tpot_bins,
    totals,
    sums,
    model,
    limits,
    objective,
    warm_s,
    replicas,
    times,
):
    """Runs [t0, t1) whole seconds long; returns the number of replicas' steps. Arrivals are those of the interval, in order.

    `times`: float64 (n, 2) for first and last token per request in arrival order, or empty: they are not kept."""
    ttft_limit, tpot_limit = objective[0], objective[1]
    n_arrivals = len(at)
    i = 0
    steps = 0
    keep = len(times) > 0
    next_end = np.inf
    next_r = -1
    for r in range(replicas):
        if real[r, F_END] < next_end:
            next_end = real[r, F_END]
            next_r = r
    for second in range(int(t0), int(t1)):
        row = series[second]
        end_s = second + 1.0
        while True:
            ta = at[i] if i < n_arrivals else np.inf
            if next_end <= ta:
                if next_end >= end_s:
                    break
                # --- a step ends -------------------------------------------------------------------------------
                r = next_r
                now = next_end
                steps += 1
                took = now - real[r, F_START]
                n = whole[r, I_DECODING]
                chunk = real[r, F_CHUNK]
                kv = real[r, F_KV]
                sums[0] += 1.0
                sums[1] += took
                sums[2] += chunk
                sums[3] += n
                sums[4] += kv
                sums[5] += took * chunk
                sums[6] += took * n
                sums[7] += took * kv
                sums[8] += chunk * chunk
                sums[9] += chunk * n
                sums[10] += chunk * kv
                sums[11] += n * n
                sums[12] += n * kv
                sums[13] += kv * kv
                row[24] += 1.0
                row[25] += took
                real[r, F_STEP_S] += took
                real[r, F_STEPS] += 1.0
                row[4] += chunk
                real[r, F_PREFILL] -= chunk
                done = whole[r, I_DONE]
                row[5] += n + done
                real[r, F_KV] += n
                whole[r, I_STEP] += 1
                index = whole[r, I_STEP] & (RING - 1)
                slot = ring[r, index]
                ring[r, index] = -1
                for source in range(2):
                    # First those whose bucket this is, then the prompts that are done with this step.
                    if source == 1:
                        slot = whole[r, I_FILL_HEAD] if done > 0 else -1
                    while slot >= 0:
                        following = slots[slot, T_NEXT]
                        output = slots[slot, T_OUTPUT]
                        ends = True
                        if source == 0:
                            if slots[slot, T_MORE] > 0:
                                ends = False
                        else:
                            if done == 0:
                                break
                            done -= 1
                            whole[r, I_PREFILLING] -= 1
                            whole[r, I_FILL_HEAD] = following
                            clocks[slot, A_FIRST] = now
                            ttft = now - clocks[slot, A_ARRIVED]
                            row[10] += 1.0
                            row[11] += ttft
                            ttft_bins[_bin(ttft)] += 1
                            if ttft <= ttft_limit:
                                totals[2] += 1.0
                            real[r, F_KV] += slots[slot, T_INPUT] + 1
                            whole[r, I_DECODING] += 1
                            slots[slot, T_MORE] = output - 1
                            ends = output == 1
                        if not ends:
                            ahead = min(slots[slot, T_MORE], RING - 1)
                            slots[slot, T_MORE] -= ahead
                            to = (whole[r, I_STEP] + ahead) & (RING - 1)
                            slots[slot, T_NEXT] = ring[r, to]
                            ring[r, to] = slot
                        else:
                            first = clocks[slot, A_FIRST]
                            arrived = clocks[slot, A_ARRIVED]
                            prompt = slots[slot, T_INPUT]
                            whole[r, I_DECODING] -= 1
                            real[r, F_KV] -= prompt + output
                            real[r, F_RESERVED] -= prompt + output
                            real[r, F_DECODE] -= slots[slot, T_PREDICTED]
                            ok_tpot = True
                            if output > 1:
                                tpot = (now - first) / (output - 1)
                                row[12] += 1.0
                                row[13] += tpot
                                tpot_bins[_bin(tpot)] += 1
                                ok_tpot = tpot <= tpot_limit
                            if ok_tpot:
                                totals[3] += 1.0
                            totals[1] += 1.0
                            row[7] += 1.0
                            row[8] += prompt
                            row[9] += output
                            if ok_tpot and first - arrived <= ttft_limit:
                                totals[4] += 1.0
                                row[14] += 1.0
                                windows[int(arrived / WINDOW_S), 1] += 1
                            k = _class(prompt)
                            lengths[k, 1] = min(lengths[k, 1] + 1.0, MEMORY)
                            lengths[k, 0] += (output - lengths[k, 0]) / lengths[k, 1]
                            if keep:
                                times[slots[slot, T_ID], 0] = first
                                times[slots[slot, T_ID], 1] = now
                            slots[slot, T_NEXT] = gate[G_FREE]
                            gate[G_FREE] = slot
                            gate[G_USED] -= 1
                        slot = following
                while gate[G_COUNT] > 0 and whole[r, I_OPEN] == 1 and whole[r, I_WAITING] < QUEUE_AHEAD:
                    slot = gate[G_HEAD]
                    gate[G_HEAD] = slots[slot, T_NEXT]
                    gate[G_COUNT] -= 1
                    totals[5] -= slots[slot, T_INPUT]
                    totals[6] -= slots[slot, T_PREDICTED]
                    submit(r, slot, now, real, whole, slots, warm_s)
                begin(r, now, real, whole, slots, model, limits, row)
                next_end = np.inf
                for q in range(replicas):
                    if real[q, F_END] < next_end:
                        next_end = real[q, F_END]
                        next_r = q
            else:
                if ta >= end_s:
                    break
                # --- a request arrives -------------------------------------------------------------------------
                slot = gate[G_FREE]
                gate[G_FREE] = slots[slot, T_NEXT]
                gate[G_USED] += 1
                prompt = inp[i]
                k = _class(prompt)
                predicted = max(int(lengths[k, 0] + 0.5), 1)
                clocks[slot, A_ARRIVED] = ta
                slots[slot, T_INPUT] = prompt
                slots[slot, T_OUTPUT] = out[i]
                slots[slot, T_PREDICTED] = predicted
                slots[slot, T_CACHED] = cached[i]
                slots[slot, T_MORE] = 0
                if keep:
                    slots[slot, T_ID] = int(totals[0])
                totals[0] += 1.0
                windows[int(ta / WINDOW_S), 0] += 1
                row[0] += 1.0
                row[1] += prompt
                row[2] += cached[i]
                row[3] += predicted
                i += 1
                best = -1
                best_work = np.inf
                for q in range(replicas):
                    if whole[q, I_OPEN] == 1 and whole[q, I_WAITING] < QUEUE_AHEAD:
                        work = real[q, F_PREFILL] + DECODE_WEIGHT * real[q, F_DECODE]
                        if work < best_work:
                            best_work = work
                            best = q
                if best < 0:
                    slots[slot, T_NEXT] = -1
                    if gate[G_COUNT] == 0:
                        gate[G_HEAD] = slot
                    else:
                        slots[gate[G_TAIL], T_NEXT] = slot
                    gate[G_TAIL] = slot
                    gate[G_COUNT] += 1
                    totals[5] += prompt
                    totals[6] += predicted
                else:
                    submit(best, slot, ta, real, whole, slots, warm_s)
                    if real[best, F_END] == np.inf:
                        begin(best, ta, real, whole, slots, model, limits, row)
                        if real[best, F_END] < next_end:
                            next_end = real[best, F_END]
                            next_r = best
        row[15] = gate[G_COUNT]
        row[18] = totals[5]
        row[19] = totals[6]
        for q in range(replicas):
            if whole[q, I_ALIVE] == 1:
                row[16] += whole[q, I_WAITING]
                row[17] += whole[q, I_PREFILLING] + whole[q, I_DECODING]
                row[18] += real[q, F_PREFILL]
                row[19] += real[q, F_DECODE]
                row[20] += real[q, F_KV]
    return steps


@nb.njit(cache=True)
def pump(now, real, whole, slots, gate, totals, model, limits, row, warm_s, replicas):  # type: ignore[no-untyped-def]
    """What waits in the gateway goes to whoever has room, least work first: after a replica became ready or died."""
    while gate[G_COUNT] > 0:
        best = -1
        best_work = np.inf
        for q in range(replicas):
            if whole[q, I_OPEN] == 1 and whole[q, I_WAITING] < QUEUE_AHEAD:
                work = real[q, F_PREFILL] + DECODE_WEIGHT * real[q, F_DECODE]
                if work < best_work:
                    best_work = work
                    best = q
        if best < 0:
            return
        slot = gate[G_HEAD]
        gate[G_HEAD] = slots[slot, T_NEXT]
        gate[G_COUNT] -= 1
        totals[5] -= slots[slot, T_INPUT]
        totals[6] -= slots[slot, T_PREDICTED]
        submit(best, slot, now, real, whole, slots, warm_s)
        if real[best, F_END] == np.inf:
            begin(best, now, real, whole, slots, model, limits, row)


@nb.njit(cache=True)
def kill(r, real, whole, ring, slots, gate, totals):  # type: ignore[no-untyped-def]
    """Replica `r` dies: its requests begin again in the gateway, at the end of its queue, with the arrival that they had."""
    for source in range(2 + RING):
        if source == 0:
            slot = whole[r, I_WAIT_HEAD] if whole[r, I_WAITING] > 0 else -1
        elif source == 1:
            slot = whole[r, I_FILL_HEAD] if whole[r, I_PREFILLING] > 0 else -1
        else:
            slot = ring[r, source - 2]
            ring[r, source - 2] = -1
        while slot >= 0:
            following = slots[slot, T_NEXT]
            slots[slot, T_MORE] = 0
            slots[slot, T_NEXT] = -1
            if gate[G_COUNT] == 0:
                gate[G_HEAD] = slot
            else:
                slots[gate[G_TAIL], T_NEXT] = slot
            gate[G_TAIL] = slot
            gate[G_COUNT] += 1
            totals[5] += slots[slot, T_INPUT]
            totals[6] += slots[slot, T_PREDICTED]
            slot = following
    real[r, :] = 0.0
    real[r, F_END] = np.inf
    whole[r, :] = 0
