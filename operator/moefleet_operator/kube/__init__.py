"""The API server and the replicas' control ports, as the core's effects need them: one effect in, one outcome out.

Here belong connecting, REST requests with named timeouts, the mapping of answers to outcomes, LISTs, access reviews
and the control RPCs. Writes follow one rule each: pods by POST and uid preconditions, everything shared by server-side apply.
Not here: when and why something is written (core, planning), watching (handlers), and how objects look (rendering).
"""
