"""The OpenAI edge: HTTP clients come in through Envoy, SMG makes prompts of their chats, and what SMG asks for goes through
the gateway like any other request (operator/decisions/0015-openai-edge.md).

Belongs here: what the edge adds to Envoy and picker, and the care for SMG. Does not belong here: chat templates, parsers of
tool calls (SMG's business), and the choice of a replica (picking).
"""
