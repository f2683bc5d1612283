"""The fleet between two ticks, compiled: replicas with continuous batching behind the gateway's router.

The same as `reference.py`, request by request and bit by bit. What makes it quick: a sequence that decodes ends after a known
number of steps, so each replica keeps a ring of buckets by step number, and a step costs the requests that begin or end in it,
not those that run. All state is in flat arrays, so that Python may look and change replicas between two calls: which column is
what is in `layout.py`. Times are seconds of the run, tokens are tokens. What is due at one moment goes in this order: deaths and
new replicas (between two calls), arrivals, ends of steps by the number of the replica.
"""

from __future__ import annotations

from typing import Final

import numba as nb
import numpy as np

from moefleet_replay import layout as k

# Of layout.py. numba keeps compiled code until this very file changes, and the numbers of layout are inside that code: who changes
# them writes the new one here (a test says which), or old machines go on with old numbers.
LAYOUT_SHA256: Final = "cfeff4cdb5a50955cbda12e40172f3408df168937e7c6a0302c232cdc768ec49"


@nb.njit(cache=True)
def _bin(value_s):  # type: ignore[no-untyped-def]
    if value_s <= k.BIN_LOW_S:
        return 0
    return min(int(np.log(value_s / k.BIN_LOW_S) / k.BIN_LOG) + 1, k.BINS - 1)


@nb.njit(cache=True)
def _class(tokens):  # type: ignore[no-untyped-def]
    kind = 0
    while tokens > 1 and kind < k.CLASSES - 1:
        tokens >>= 1
        kind += 1
    return kind


@nb.njit(cache=True)
def _kind(prompt, output, gate):  # type: ignore[no-untyped-def]
    """Row of `lengths` of such a request."""
    kind = _class(prompt) * k.LIMIT_CLASSES
    return kind + 1 + _class(output) if gate[k.G_TOLD] != 0 else kind


@nb.njit(cache=True)
def _count(kind, now, lengths):  # type: ignore[no-untyped-def]
    """Time that answers of this class ran since it was last counted."""
    lengths[kind, k.C_BUSY_S] += lengths[kind, k.C_RUNNING] * max(now - lengths[kind, k.C_AT], 0.0)
    lengths[kind, k.C_AT] = now


@nb.njit(cache=True)
def _expected(kind, now, lengths):  # type: ignore[no-untyped-def]
    """Answer of a request of this class, as moefleet_gateway.picking.lengths has it (without its quantile for the first 200)."""
    _count(kind, now, lengths)
    guess = lengths[kind, k.C_MEAN]
    if lengths[kind, k.C_ENDED] > 0.0 and lengths[kind, k.C_LASTED_S] > 0.0:
        found = lengths[kind, k.C_BUSY_S] / lengths[kind, k.C_ENDED] / lengths[kind, k.C_LASTED_S]
        if found >= k.LEAST_CORRECTION:
            guess *= min(found, k.MOST_CORRECTION)
    return max(int(guess + 0.5), 1)


@nb.njit(cache=True)
def _learn(kind, output, picked, now, lengths):  # type: ignore[no-untyped-def]
    """An answer ended."""
    _count(kind, now, lengths)
    lengths[kind, k.C_RUNNING] -= 1.0
    lengths[kind, k.C_WEIGHT] = min(lengths[kind, k.C_WEIGHT] + 1.0, k.MEMORY)
    lengths[kind, k.C_MEAN] += (output - lengths[kind, k.C_MEAN]) / lengths[kind, k.C_WEIGHT]
    lengths[kind, k.C_LASTED_WEIGHT] = min(lengths[kind, k.C_LASTED_WEIGHT] + 1.0, k.MEMORY)
    lasted_s = now - picked
    lengths[kind, k.C_LASTED_S] += (lasted_s - lengths[kind, k.C_LASTED_S]) / lengths[kind, k.C_LASTED_WEIGHT]
    kept = 1.0 - 1.0 / k.MEMORY
    lengths[kind, k.C_BUSY_S] *= kept
    lengths[kind, k.C_ENDED] = lengths[kind, k.C_ENDED] * kept + 1.0


@nb.njit(cache=True)
def score(r, real, whole):  # type: ignore[no-untyped-def]
    """What the router compares; infinite: gets none."""
    if whole[r, k.I_OPEN] == 1 and whole[r, k.I_WAITING] < k.QUEUE_AHEAD:
        return real[r, k.F_PREFILL] + k.DECODE_WEIGHT * real[r, k.F_DECODE]
    return np.inf


@nb.njit(cache=True)
def _preempt(r, real, whole, ring, slots, totals):  # type: ignore[no-untyped-def]
    """The youngest leaves for the head of the queue, with what it has produced."""
    slot = whole[r, k.I_YOUNGEST]
    if whole[r, k.I_PREFILLING] > 0:
        # Prompts are read in the order of admission: the youngest is the last of them.
        before = -1
        place = whole[r, k.I_FILL_HEAD]
        while place != slot:
            before = place
            place = slots[place, k.T_NEXT]
        if before >= 0:
            slots[before, k.T_NEXT] = -1
        whole[r, k.I_FILL_TAIL] = before
        whole[r, k.I_PREFILLING] -= 1
        context = slots[slot, k.T_INPUT] + slots[slot, k.T_PRODUCED]
        real[r, k.F_RESERVED] -= context + 1
        real[r, k.F_FILLED] -= context - slots[slot, k.T_LEFT]
    else:
        index = slots[slot, k.T_DUE] & (ring.shape[1] - 1)
        if ring[r, index] == slot:
            ring[r, index] = slots[slot, k.T_NEXT]
        else:
            place = ring[r, index]
            while slots[place, k.T_NEXT] != slot:
                place = slots[place, k.T_NEXT]
            slots[place, k.T_NEXT] = slots[slot, k.T_NEXT]
        left = slots[slot, k.T_MORE] + slots[slot, k.T_DUE] - whole[r, k.I_STEP]
        slots[slot, k.T_PRODUCED] = slots[slot, k.T_OUTPUT] - left
        slots[slot, k.T_LEFT] = 0
        context = slots[slot, k.T_INPUT] + slots[slot, k.T_PRODUCED]
        whole[r, k.I_DECODING] -= 1
        real[r, k.F_RESERVED] -= context
        real[r, k.F_KV] -= context
    real[r, k.F_PREFILL] += context - slots[slot, k.T_HIT] - slots[slot, k.T_LEFT]
    slots[slot, k.T_LEFT] = context - slots[slot, k.T_HIT]
    _leave(r, slot, whole, slots)
    if whole[r, k.I_WAITING] == 0:
        whole[r, k.I_WAIT_TAIL] = slot
        slots[slot, k.T_NEXT] = -1
    else:
        slots[slot, k.T_NEXT] = whole[r, k.I_WAIT_HEAD]
    whole[r, k.I_WAIT_HEAD] = slot
    whole[r, k.I_WAITING] += 1
    totals[k.X_PREEMPTIONS] += 1.0


@nb.njit(cache=True)
def _leave(r, slot, whole, slots):  # type: ignore[no-untyped-def]
    """Out of the list of admitted ones, which is kept only when preempting."""
    older, younger = slots[slot, k.T_OLDER], slots[slot, k.T_YOUNGER]
    if older >= 0:
        slots[older, k.T_YOUNGER] = younger
    if younger >= 0:
        slots[younger, k.T_OLDER] = older
    else:
        whole[r, k.I_YOUNGEST] = older


@nb.njit(cache=True)
def begin(r, now, real, whole, ring, slots, totals, model, limits, row):  # type: ignore[no-untyped-def]
    """Starts the next step of replica `r`, or leaves it idle: admission, then prompt chunks, as VirtualReplica.run_step."""
    preempting = limits[k.L_PREEMPTING] != 0
    soon = 0
    if preempting:
        while real[r, k.F_RESERVED] + whole[r, k.I_DECODING] > limits[k.L_KV]:
            _preempt(r, real, whole, ring, slots, totals)
        soon = whole[r, k.I_DECODING]
    while (
        whole[r, k.I_WAITING] > 0
        and whole[r, k.I_PREFILLING] + whole[r, k.I_DECODING] < limits[k.L_SEQUENCES]
    ):
        slot = whole[r, k.I_WAIT_HEAD]
        if preempting:
            need = slots[slot, k.T_INPUT] + slots[slot, k.T_PRODUCED] + 1
        else:
            need = slots[slot, k.T_INPUT] + slots[slot, k.T_OUTPUT]
        if real[r, k.F_RESERVED] + soon + need > limits[k.L_KV]:
            break
        real[r, k.F_RESERVED] += need
        real[r, k.F_FILLED] += slots[slot, k.T_HIT]
        whole[r, k.I_WAIT_HEAD] = slots[slot, k.T_NEXT]
        whole[r, k.I_WAITING] -= 1
        slots[slot, k.T_NEXT] = -1
        if whole[r, k.I_PREFILLING] == 0:
            whole[r, k.I_FILL_HEAD] = slot
        else:
            slots[whole[r, k.I_FILL_TAIL], k.T_NEXT] = slot
        whole[r, k.I_FILL_TAIL] = slot
        whole[r, k.I_PREFILLING] += 1
        if preempting:
            slots[slot, k.T_YOUNGER] = -1
            slots[slot, k.T_OLDER] = whole[r, k.I_YOUNGEST]
            if whole[r, k.I_YOUNGEST] >= 0:
                slots[whole[r, k.I_YOUNGEST], k.T_YOUNGER] = slot
            whole[r, k.I_YOUNGEST] = slot
        row[6] += 1.0
    n = whole[r, k.I_DECODING]
    left = whole[r, k.I_PREFILLING]
    if left == 0 and n == 0:
        whole[r, k.I_RUNS] = 0
        real[r, k.F_END] = np.inf
        real[r, k.F_IDLE_AT] = now
        return
    room = limits[k.L_CHUNK] - n
    if left > 0 and room < 1:
        room = 1
    used = 0
    done = 0
    attended = 0.0
    slot = whole[r, k.I_FILL_HEAD]
    while left > 0 and used < room:
        part = min(slots[slot, k.T_LEFT], room - used)
        before = slots[slot, k.T_INPUT] + slots[slot, k.T_PRODUCED] - slots[slot, k.T_LEFT]
        attended += part * (before + 0.5 * part)
        slots[slot, k.T_LEFT] -= part
        used += part
        if slots[slot, k.T_LEFT] > 0:
            break
        done += 1
        left -= 1
        slot = slots[slot, k.T_NEXT]
    real[r, k.F_CHUNK] = used
    real[r, k.F_FILLED] += used
    whole[r, k.I_DONE] = done
    whole[r, k.I_RUNS] = 1
    real[r, k.F_START] = now
    linear = model[0] + model[1] * used + model[2] * n + model[3] * real[r, k.F_KV]
    real[r, k.F_END] = now + (linear + model[4] * attended)


@nb.njit(cache=True)
def submit(r, slot, now, real, whole, clocks, slots, gate, lengths, warm_s):  # type: ignore[no-untyped-def]
    """Request `slot` joins the queue of replica `r`. A cold cache knows nothing; after `warm_s` it knows what the trace says."""
    clocks[slot, k.A_PICKED] = now
    kind = _kind(slots[slot, k.T_INPUT], slots[slot, k.T_OUTPUT], gate)
    _count(kind, now, lengths)
    lengths[kind, k.C_RUNNING] += 1.0
    cached = slots[slot, k.T_CACHED]
    if cached > 0:
        warm = 1.0 if warm_s <= 0.0 else min(1.0, (now - real[r, k.F_READY_AT]) / warm_s)
        cached = min(int(cached * warm), slots[slot, k.T_INPUT] - 1)
    slots[slot, k.T_HIT] = cached
    slots[slot, k.T_LEFT] = slots[slot, k.T_INPUT] - cached
    slots[slot, k.T_NEXT] = -1
    if whole[r, k.I_WAITING] == 0:
        whole[r, k.I_WAIT_HEAD] = slot
    else:
        slots[whole[r, k.I_WAIT_TAIL], k.T_NEXT] = slot
    whole[r, k.I_WAIT_TAIL] = slot
    whole[r, k.I_WAITING] += 1
    real[r, k.F_PREFILL] += slots[slot, k.T_LEFT]
    real[r, k.F_DECODE] += slots[slot, k.T_PREDICTED]
    if whole[r, k.I_RUNS] == 0 and real[r, k.F_END] > now:
        # Idle: it begins when everything that comes at this very moment is here.
        real[r, k.F_END] = now


@nb.njit(cache=True)
def hold(slot, slots, gate, totals):  # type: ignore[no-untyped-def]
    """To the end of the gateway's queue."""
    slots[slot, k.T_NEXT] = -1
    if gate[k.G_COUNT] == 0:
        gate[k.G_HEAD] = slot
    else:
        slots[gate[k.G_TAIL], k.T_NEXT] = slot
    gate[k.G_TAIL] = slot
    gate[k.G_COUNT] += 1
    totals[k.X_HELD_PREFILL] += slots[slot, k.T_INPUT]
    totals[k.X_HELD_DECODE] += slots[slot, k.T_PREDICTED]


@nb.njit(cache=True)
def _next_held(slots, gate, totals):  # type: ignore[no-untyped-def]
    slot = gate[k.G_HEAD]
    gate[k.G_HEAD] = slots[slot, k.T_NEXT]
    gate[k.G_COUNT] -= 1
    totals[k.X_HELD_PREFILL] -= slots[slot, k.T_INPUT]
    totals[k.X_HELD_DECODE] -= slots[slot, k.T_PREDICTED]
    return slot


@nb.njit(cache=True)
def advance(  # type: ignore[no-untyped-def]
    t0, t1, at, inp, out, cached, real, whole, ring, recent, clocks, slots, gate, lengths, series, minutes, ttft_bins, ttft_minutes,
    tpot_bins, totals, sums, model, limits, objective, warm_s, replicas, times,
):  # fmt: skip
    """Runs the whole seconds [t0, t1); returns the steps of all replicas. Arrivals are those of the interval, in order.

    `times`: float64 (n, 2) for first and last token per request in arrival order, or empty: they are not kept."""
    ttft_limit, tpot_limit = objective[0], objective[1]
    n_arrivals = len(at)
    i = 0
    steps = 0
    keep = len(times) > 0
    ring_mask = ring.shape[1] - 1
    preempting = limits[k.L_PREEMPTING] != 0
    # Side by side for the two scans: when each replica is next, and what the router thinks of it.
    ends = np.empty(replicas)
    scores = np.empty(replicas)
    for r in range(replicas):
        ends[r] = real[r, k.F_END]
        scores[r] = score(r, real, whole)
    for second in range(int(t0), int(t1)):
        row = series[second]
        end_s = second + 1.0
        next_end = np.inf
        next_r = -1
        for q in range(replicas):
            if ends[q] < next_end:
                next_end = ends[q]
                next_r = q
        while True:
            ta = at[i] if i < n_arrivals else np.inf
            if ta <= next_end:
                if ta >= end_s:
                    break
                # --- a request arrives -------------------------------------------------------------------------
                slot = gate[k.G_FREE]
                gate[k.G_FREE] = slots[slot, k.T_NEXT]
                gate[k.G_USED] += 1
                prompt = inp[i]
                predicted = _expected(_kind(prompt, out[i], gate), ta, lengths)
                if gate[k.G_TOLD] != 0:
                    predicted = min(predicted, out[i])
                clocks[slot, k.A_ARRIVED] = ta
                slots[slot, k.T_INPUT] = prompt
                slots[slot, k.T_OUTPUT] = out[i]
                slots[slot, k.T_PREDICTED] = predicted
                slots[slot, k.T_CACHED] = cached[i]
                slots[slot, k.T_MORE] = 0
                slots[slot, k.T_PRODUCED] = 0
                slots[slot, k.T_ID] = int(totals[k.X_REQUESTS])
                totals[k.X_REQUESTS] += 1.0
                minutes[int(ta / k.MINUTE_S), 0] += 1
                row[0] += 1.0
                row[1] += prompt
                row[2] += cached[i]
                row[3] += predicted
                i += 1
                best = -1
                if gate[k.G_COUNT] == 0:
                    least = np.inf
                    for q in range(replicas):
                        if scores[q] < least:
                            least = scores[q]
                            best = q
                if best < 0:
                    hold(slot, slots, gate, totals)
                else:
                    submit(best, slot, ta, real, whole, clocks, slots, gate, lengths, warm_s)
                    scores[best] = score(best, real, whole)
                    ends[best] = real[best, k.F_END]
                    if ends[best] < next_end or (ends[best] == next_end and best < next_r):
                        next_end = ends[best]
                        next_r = best
                continue
            if next_end >= end_s:
                break
            r = next_r
            now = next_end
            n = whole[r, k.I_DECODING]
            if (
                ring[r, (whole[r, k.I_STEP] + 1) & ring_mask] < 0
                and whole[r, k.I_WAITING] == 0
                and whole[r, k.I_PREFILLING] == 0
                and gate[k.G_COUNT] == 0
                and n > 0
                and not (preempting and real[r, k.F_RESERVED] + 2 * n > limits[k.L_KV])
            ):
                # --- a step ends in which nothing but decoding was, and the next one is such a step: the same in short ------
                steps += 1
                took = now - real[r, k.F_START]
                kv = real[r, k.F_KV]
                sums[0] += 1.0
                sums[1] += took
                sums[3] += n
                sums[4] += kv
                sums[6] += took * n
                sums[7] += took * kv
                sums[11] += n * n
                sums[12] += n * kv
                sums[13] += kv * kv
                row[24] += 1.0
                row[25] += took
                row[5] += n
                real[r, k.F_STEP_S] += took
                real[r, k.F_STEPS] += 1.0
                real[r, k.F_KV] += n
                if preempting:
                    real[r, k.F_RESERVED] += n
                whole[r, k.I_STEP] += 1
                real[r, k.F_START] = now
                ends[r] = now + (model[0] + model[2] * n + model[3] * real[r, k.F_KV])
                real[r, k.F_END] = ends[r]
                next_end = np.inf
                for q in range(replicas):
                    if ends[q] < next_end:
                        next_end = ends[q]
                        next_r = q
                continue
            if whole[r, k.I_RUNS] == 1:
                # --- a step ends -------------------------------------------------------------------------------
                steps += 1
                took = now - real[r, k.F_START]
                n = whole[r, k.I_DECODING]
                chunk = real[r, k.F_CHUNK]
                kv = real[r, k.F_KV]
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
                done = whole[r, k.I_DONE]
                row[24] += 1.0
                row[25] += took
                row[4] += chunk
                row[5] += n + done
                real[r, k.F_STEP_S] += took
                real[r, k.F_STEPS] += 1.0
                real[r, k.F_PREFILL] -= chunk
                real[r, k.F_KV] += n
                if preempting:
                    real[r, k.F_RESERVED] += n
                whole[r, k.I_STEP] += 1
                index = whole[r, k.I_STEP] & ring_mask
                slot = ring[r, index]
                ring[r, index] = -1
                for source in range(2):
                    # First those whose bucket this is, then the prompts that are done with this step.
                    if source == 1:
                        slot = whole[r, k.I_FILL_HEAD] if done > 0 else -1
                    while slot >= 0:
                        following = slots[slot, k.T_NEXT]
                        output = slots[slot, k.T_OUTPUT]
                        if source == 1:
                            if done == 0:
                                break
                            done -= 1
                            whole[r, k.I_PREFILLING] -= 1
                            whole[r, k.I_FILL_HEAD] = following
                            produced = slots[slot, k.T_PRODUCED]
                            if produced == 0:
                                clocks[slot, k.A_FIRST] = now
                                row[10] += 1.0
                                row[11] += now - clocks[slot, k.A_ARRIVED]
                            context = slots[slot, k.T_INPUT] + produced
                            real[r, k.F_FILLED] -= context
                            real[r, k.F_KV] += context + 1
                            whole[r, k.I_DECODING] += 1
                            slots[slot, k.T_MORE] = output - produced - 1
                        if slots[slot, k.T_MORE] > 0:
                            ahead = min(slots[slot, k.T_MORE], ring_mask)
                            slots[slot, k.T_MORE] -= ahead
                            slots[slot, k.T_DUE] = whole[r, k.I_STEP] + ahead
                            to = slots[slot, k.T_DUE] & ring_mask
                            slots[slot, k.T_NEXT] = ring[r, to]
                            ring[r, to] = slot
                        else:
                            first = clocks[slot, k.A_FIRST]
                            arrived = clocks[slot, k.A_ARRIVED]
                            prompt = slots[slot, k.T_INPUT]
                            whole[r, k.I_DECODING] -= 1
                            real[r, k.F_KV] -= prompt + output
                            real[r, k.F_RESERVED] -= prompt + output
                            real[r, k.F_DECODE] -= slots[slot, k.T_PREDICTED]
                            if preempting:
                                _leave(r, slot, whole, slots)
                            ttft = first - arrived
                            place = _bin(ttft)
                            ttft_bins[place] += 1
                            ttft_minutes[int(arrived / k.MINUTE_S), place // k.COARSE] += 1
                            ok_ttft = ttft <= ttft_limit
                            ok_tpot = True
                            if output > 1:
                                tpot = (now - first) / (output - 1)
                                row[12] += 1.0
                                row[13] += tpot
                                tpot_bins[_bin(tpot)] += 1
                                ok_tpot = tpot <= tpot_limit
                            totals[k.X_ENDED] += 1.0
                            if ok_ttft:
                                totals[k.X_TTFT_OK] += 1.0
                            if ok_tpot:
                                totals[k.X_TPOT_OK] += 1.0
                            row[7] += 1.0
                            row[8] += prompt
                            row[9] += output
                            if ok_tpot and ok_ttft:
                                totals[k.X_OK] += 1.0
                                row[14] += 1.0
                                minutes[int(arrived / k.MINUTE_S), 1] += 1
                            _learn(
                                _kind(prompt, output, gate), output, clocks[slot, k.A_PICKED], now, lengths
                            )
                            if keep:
                                times[slots[slot, k.T_ID], 0] = first
                                times[slots[slot, k.T_ID], 1] = now
                            slots[slot, k.T_NEXT] = gate[k.G_FREE]
                            gate[k.G_FREE] = slot
                            gate[k.G_USED] -= 1
                        slot = following
            begin(r, now, real, whole, ring, slots, totals, model, limits, row)
            if gate[k.G_COUNT] > 0 and whole[r, k.I_OPEN] == 1:
                # All others are full, or nothing would wait.
                while gate[k.G_COUNT] > 0 and whole[r, k.I_WAITING] < k.QUEUE_AHEAD:
                    submit(
                        r,
                        _next_held(slots, gate, totals),
                        now,
                        real,
                        whole,
                        clocks,
                        slots,
                        gate,
                        lengths,
                        warm_s,
                    )
            ends[r] = real[r, k.F_END]
            scores[r] = score(r, real, whole)
            next_end = np.inf
            for q in range(replicas):
                if ends[q] < next_end:
                    next_end = ends[q]
                    next_r = q
        row[15] = gate[k.G_COUNT]
        row[18] = totals[k.X_HELD_PREFILL]
        row[19] = totals[k.X_HELD_DECODE]
        for q in range(replicas):
            if whole[q, k.I_ALIVE] == 1:
                row[16] += whole[q, k.I_WAITING]
                row[17] += whole[q, k.I_PREFILLING] + whole[q, k.I_DECODING]
                row[18] += real[q, k.F_PREFILL]
                row[19] += real[q, k.F_DECODE]
                row[20] += real[q, k.F_KV] + real[q, k.F_FILLED]
                recent[q, second % k.RECENT_SLOTS, 0] = real[q, k.F_STEP_S]
                recent[q, second % k.RECENT_SLOTS, 1] = real[q, k.F_STEPS]
    return steps


@nb.njit(cache=True)
def pump(now, real, whole, clocks, slots, gate, lengths, totals, warm_s, replicas):  # type: ignore[no-untyped-def]
    """What waits in the gateway goes to whoever has room, least work first: after a replica became ready or died."""
    while gate[k.G_COUNT] > 0:
        best = -1
        least = np.inf
        for q in range(replicas):
            work = score(q, real, whole)
            if work < least:
                least = work
                best = q
        if best < 0:
            return
        submit(best, _next_held(slots, gate, totals), now, real, whole, clocks, slots, gate, lengths, warm_s)


@nb.njit(cache=True)
def kill(r, real, whole, ring, slots, gate, lengths, totals):  # type: ignore[no-untyped-def]
    """Replica `r` dies: its requests begin again in the gateway, at the end of its queue in the order in which they came.

    They keep the arrival that they had; tokens that were sent are not sent again, so the first one of the new try counts."""
    found = np.empty(whole[r, k.I_WAITING] + whole[r, k.I_PREFILLING] + whole[r, k.I_DECODING], np.int64)
    count = 0
    for source in range(2 + ring.shape[1]):
        if source == 0:
            slot = whole[r, k.I_WAIT_HEAD] if whole[r, k.I_WAITING] > 0 else -1
        elif source == 1:
            slot = whole[r, k.I_FILL_HEAD] if whole[r, k.I_PREFILLING] > 0 else -1
        else:
            slot = ring[r, source - 2]
            ring[r, source - 2] = -1
        while slot >= 0:
            found[count] = slot
            count += 1
            slot = slots[slot, k.T_NEXT]
    ids = np.empty(count, np.int64)
    for j in range(count):
        ids[j] = slots[found[j], k.T_ID]
    for j in np.argsort(ids):
        slot = found[j]
        slots[slot, k.T_MORE] = 0
        slots[slot, k.T_PRODUCED] = 0
        lengths[_kind(slots[slot, k.T_INPUT], slots[slot, k.T_OUTPUT], gate), k.C_RUNNING] -= 1.0
        hold(slot, slots, gate, totals)
    totals[k.X_RETRIES] += count
    clear(r, real, whole)


@nb.njit(cache=True)
def clear(r, real, whole):  # type: ignore[no-untyped-def]
    """An empty row: nobody."""
    real[r, :] = 0.0
    real[r, k.F_END] = np.inf
    whole[r, :] = 0
    whole[r, k.I_YOUNGEST] = -1
