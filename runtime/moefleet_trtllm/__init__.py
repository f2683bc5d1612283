"""The LLM API of TensorRT-LLM as data, and what is wrong with arguments for it.

Everybody may import it: the operator refuses a wrong argument before it makes a pod, the engine before it loads anything, and
the contract and its fake are made from the same snapshot. It is pure and knows no package of ours.
The engine itself belongs to `moefleet_runtime.engine.tensorrt_llm`.
"""
