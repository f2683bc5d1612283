"""The contract between the adapter and `tensorrt_llm` 1.2.1, as checks that run against whichever is installed.

`python -m moefleet_runtime.engine.tensorrt_llm.contract --model DIR` runs them on a machine with GPUs. The project's own tests
run them against a strict fake, and against adapters with planted mistakes, each of which must fail. What a check can see is
what goes through the API (a spy sits between) and what comes out of the engine; no check knows which of the two it talks to.
"""
