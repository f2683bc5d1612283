"""Engines: what makes tokens. Each engine sits behind the protocol of `base`.

Belongs here: the protocol, its types, and one module or package per engine (`simulated`, `torch/`,
`tensorrt_llm/`), imported only when chosen. Does not belong here: gRPC, processes, text. An engine
lives in the engine host process; the server process knows only what `base` describes.
"""
