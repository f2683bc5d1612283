"""Rotary positions of DeepSeek-V2: neighbouring pairs, YaRN, and its two mscales.

One mscale multiplies cos and sin, m(mscale)/m(mscale_all_dim), and is 1 when both are equal; the other multiplies the
softmax scale, m(mscale_all_dim) squared. Leaving either out gives text that looks right and logits that are not.
"""

from __future__ import annotations

import math

import torch

from moefleet_runtime.engine.torch.config import ModelConfig, YarnConfig

Tensor = torch.Tensor


def rope_table(config: ModelConfig, positions: int, device: torch.device) -> Tensor:
    """By how much each pair is turned and stretched at every position that the engine serves: cos + i sin, complex64,
    [positions, rope_dim / 2]."""
    angles = torch.outer(torch.arange(positions).float(), _frequencies(config))
    amplitude = 1.0 if config.yarn is None else _amplitude(config.yarn)
    return torch.complex(angles.cos() * amplitude, angles.sin() * amplitude).to(device)


def softmax_scale(config: ModelConfig) -> float:
    scale = 1 / math.sqrt(config.nope_dim + config.rope_dim)
    if config.yarn is None:
        return scale
    return scale * _mscale(config.yarn.factor, config.yarn.mscale_all_dim) ** 2


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Pairs are neighbours (x0, x1), (x2, x3), as the published weights have them; computed in float32. `turns`: of `rope_table`,
    against all dimensions but the last. One complex product: a third of the time of four real ones on a CPU."""
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


def _frequencies(config: ModelConfig) -> Tensor:
    dim, base, yarn = config.rope_dim, config.rope_theta, config.yarn
    plain: Tensor = base ** (-torch.arange(0, dim, 2).float() / dim)
    if yarn is None:
        return plain

    def dimension_of(turns: float) -> float:
        return dim * math.log(yarn.original_positions / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension_of(yarn.beta_fast)), 0)
    high = min(math.ceil(dimension_of(yarn.beta_slow)), dim - 1)
    ramp = ((torch.arange(dim // 2).float() - low) / max(high - low, 1e-3)).clamp(0, 1)
    return plain / yarn.factor * ramp + plain * (1 - ramp)


def _amplitude(yarn: YarnConfig) -> float:
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    return _mscale(yarn.factor, yarn.mscale) / _mscale(yarn.factor, yarn.mscale_all_dim)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
