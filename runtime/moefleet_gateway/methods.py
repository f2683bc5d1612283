"""The methods that consumers may call, and who answers. Everything else is UNIMPLEMENTED before anybody sees it.

Routes and the request reader are made from this list, so that a method cannot be open in one and unknown in the other.
"""

from __future__ import annotations

INFERENCE = "moefleet.inference.v1.InferenceService"
TRTLLM = "trtllm.TrtllmService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"

GENERATE = f"/{INFERENCE}/Generate"
COUNT_TOKENS = f"/{INFERENCE}/CountTokens"
GET_MODEL = f"/{INFERENCE}/GetModel"
LIST_MODELS = f"/{INFERENCE}/ListModels"
TRTLLM_GENERATE = f"/{TRTLLM}/Generate"
TRTLLM_ABORT = f"/{TRTLLM}/Abort"
# Answered alike by every replica of a fleet. Not here: Embed (no engine of ours embeds) and SubscribeKvEvents
# (it is about one replica, which a caller behind the gateway cannot name).
TRTLLM_INFO = tuple(
    f"/{TRTLLM}/{name}" for name in ("HealthCheck", "GetModelInfo", "GetServerInfo", "GetTokenizer")
)

# Answered by a replica, after the picker chose it.
TO_REPLICA = (GENERATE, COUNT_TOKENS, GET_MODEL, TRTLLM_GENERATE, TRTLLM_ABORT, *TRTLLM_INFO)
# Answered by the picker itself.
TO_PICKER = (LIST_MODELS, f"/{HEALTH}/Check", f"/{HEALTH}/Watch", f"/{REFLECTION}/ServerReflectionInfo")
