"""The words on the wire between Envoy, picker and replica (operator/decisions/0001-seams.md)."""

CLUSTER = "x-moefleet-cluster"
DESTINATION = "x-gateway-destination-endpoint"
POD_UIDS = "x-moefleet-pod-uids"
MODEL = "x-moefleet-model"
REFUSED = "x-moefleet-refused"
OPEN_ENDED = "x-moefleet-open-ended"  # "1": the client of a chat named no length, whatever max_tokens says
SEED = "x-moefleet-seed"  # decimal: the seed that an OpenAI client named, for which SMG has no place
FLEET = "x-moefleet-fleet"  # the only x-moefleet-* header of clients that counts
USAGE_PROMPT = "x-usage-prompt-tokens"
USAGE_COMPLETION = "x-usage-completion-tokens"
USAGE_CACHED = "x-usage-cached-tokens"
