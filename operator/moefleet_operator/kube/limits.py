"""Every limit of our traffic with the API server and the replicas, with its unit and its reason."""

from __future__ import annotations

from typing import Final

# A connection that takes longer is to a dead address: the next attempt may find another API server.
CONNECT_TIMEOUT_S: Final = 3.0
# The API server answers writes in milliseconds; its own limit for slow admission is 30 s, and the core retries anyway.
WRITE_TIMEOUT_S: Final = 15.0
# A page of pods can take a loaded API server seconds.
LIST_TIMEOUT_S: Final = 60.0
# Four attempts fit into the 10 s after which a leader must stop acting.
LEASE_TIMEOUT_S: Final = 2.5
# Drain and Resume only set a flag in the replica.
REPLICA_CALL_TIMEOUT_S: Final = 2.0

# Objects a page: of pods 700 kB, half of it managedFields, which are let go before the next page comes. With pages of 500 the
# operator held 258 MiB after LISTs of 1,000 pods, with these 211: what a process needed once it seldom gives back.
LIST_PAGE_OBJECTS: Final = 100
# Connections for writes, and so writes at the same time: below the API server's share for one flow.
WRITE_CONNECTIONS: Final = 32
# The Lease has a session of its own: nothing can be before it in a queue.
LEASE_CONNECTIONS: Final = 2
# LISTs and access reviews: one long answer may not keep a write waiting.
READ_CONNECTIONS: Final = 4

# Reads are tried again here (nobody else would): 0.2, 0.4, 0.8, 1.6 s and what Retry-After asks for.
READ_ATTEMPTS: Final = 5
READ_BACKOFF_FIRST_S: Final = 0.2
# A server that asks for more is asked again by the next resync.
RETRY_AFTER_MAX_S: Final = 30.0

# events.k8s.io refuses longer notes; actions and reasons may have 128.
EVENT_NOTE_MAX_CHARS: Final = 1024
EVENT_WORD_MAX_CHARS: Final = 128
# An error text of the API server can quote a whole object.
ERROR_MAX_CHARS: Final = 500
