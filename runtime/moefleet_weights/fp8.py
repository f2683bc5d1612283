"""Block-scaled FP8 as DeepSeek-V3 publishes it: float8_e4m3fn numbers and one float32 scale for each block of 128x128.

value = number * scale; the scales are stored as `<name>_scale_inv` (the inverse of what the quantiser multiplied with).
Blocks at the right and lower edge are as small as what is left. The largest number of a block becomes 448, the largest
of e4m3fn.
"""

from __future__ import annotations

from typing import Final

import torch

Tensor = torch.Tensor

BLOCK: Final = 128
LARGEST: Final = 448.0
SCALE_SUFFIX: Final = "_scale_inv"
# Smaller would make the scale subnormal, which GPUs may flush to zero.
_SMALLEST_SCALE: Final = torch.finfo(torch.float32).tiny


def scale_shape(rows: int, columns: int, block: tuple[int, int] = (BLOCK, BLOCK)) -> tuple[int, int]:
    return -(-rows // block[0]), -(-columns // block[1])


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, columns] of finite numbers -> float8_e4m3fn [rows, columns], float32 scales [blocks, blocks].

    A block with a number that is not finite has a scale that is not, and no meaning.
    """
    rows, columns = weight.shape
    down, across = scale_shape(rows, columns)
    padded = torch.zeros(down * BLOCK, across * BLOCK, dtype=torch.float32)
    padded[:rows, :columns] = weight
    blocks = padded.view(down, BLOCK, across, BLOCK)
    largest = blocks.abs().amax(dim=(1, 3))
    # A block of zeros has no largest: any scale will do. NaN and infinity go through, so that a caller sees them here.
    scales = torch.where(largest == 0, 1.0, largest / LARGEST).clamp_(min=_SMALLEST_SCALE)
    blocks.div_(scales[:, None, :, None])
    # The cast gives NaN above 448, which a rounding of the division may reach.
    numbers = padded[:rows, :columns].clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return numbers.contiguous(), scales


def dequantise(
    numbers: Tensor, scales: Tensor, into: Tensor, block: tuple[int, int] = (BLOCK, BLOCK)
) -> None:
    """Into a place of the same shape, of any type and device. One row of blocks at a time: no second copy of the matrix."""
    rows, columns = numbers.shape
    for at in range(scales.shape[0]):
        part = slice(at * block[0], min((at + 1) * block[0], rows))
        across = scales[at].to(torch.float32).repeat_interleave(block[1])[:columns]
        into[part].copy_(numbers[part].to(torch.float32) * across)
