"""How both clients connect. Values fit what gateway and replicas allow (pings every 0.5 s and more)."""

from __future__ import annotations

from typing import Final

MAX_MESSAGE_BYTES: Final = 64 << 20
CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A gateway that vanished without a word is noticed within 8 s, as a gateway notices a replica that did
    # (MOEFLEET_REPLICA_SILENCE_S), and the answer goes on elsewhere. Only streams from which nothing comes are asked.
    ("grpc.keepalive_time_ms", 3_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A dead address is tried again soon: an answer waits for it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Ours know what may be repeated; gRPC's own retries would hide what happened.
    ("grpc.enable_retries", 0),
)
# For CountTokens, GetModel and ListModels, and how often they are tried.
UNARY_TIMEOUT_S: Final = 10.0
