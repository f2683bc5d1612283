"""Block-scaled FP8: what a block keeps, what it loses, and that edges and zeros are no special case."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_weights.fp8 import BLOCK, LARGEST, dequantise, quantise, scale_shape


def there_and_back(weight: torch.Tensor) -> torch.Tensor:
    numbers, scales = quantise(weight)
    assert numbers.dtype is torch.float8_e4m3fn
    assert scales.dtype is torch.float32
    assert scales.shape == scale_shape(*weight.shape)
    out = torch.empty_like(weight, dtype=torch.float32)
    dequantise(numbers, scales, out)
    return out


@pytest.mark.parametrize(
    ("rows", "columns", "blocks"),
    [(1, 1, (1, 1)), (128, 128, (1, 1)), (129, 128, (2, 1)), (576, 5120, (5, 40)), (127, 257, (1, 3))],
)
def test_blocks_at_the_edge_are_as_small_as_what_is_left(
    rows: int, columns: int, blocks: tuple[int, int]
) -> None:
    assert scale_shape(rows, columns) == blocks
    weight = (torch.arange(rows * columns, dtype=torch.float32) % 97 + 1).view(rows, columns)
    torch.testing.assert_close(there_and_back(weight), weight, rtol=1 / 16, atol=0)


def test_the_largest_of_each_block_is_kept_and_scales_are_of_their_block() -> None:
    weight = torch.zeros(2 * BLOCK, 2 * BLOCK)
    for i in range(2):
        for j in range(2):
            weight[i * BLOCK + 5, j * BLOCK + 7] = -(10.0 ** (i * 2 + j))
    _, scales = quantise(weight)
    expected = torch.tensor([[1.0, 10.0], [100.0, 1000.0]]) / LARGEST
    torch.testing.assert_close(scales, expected)
    torch.testing.assert_close(there_and_back(weight), weight)


def test_numbers_that_the_format_has_are_kept_exactly() -> None:
    """All finite values of e4m3fn, times a power of two."""
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    weight = (values[values.isfinite()] * 2.0**-9)[None]
    assert torch.equal(there_and_back(weight), weight)


@pytest.mark.parametrize("value", [0.0, 1e-45, torch.finfo(torch.float32).tiny, 3e38])
def test_no_block_divides_by_zero_or_overflows(value: float) -> None:
    weight = torch.full((3, 200), value)
    back = there_and_back(weight)
    assert back.isfinite().all()
    torch.testing.assert_close(back, weight, rtol=1e-6, atol=1e-38)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    exponent=st.integers(-30, 30),
    seed=st.integers(0, 2**31),
)
def test_each_number_is_off_by_half_a_step_at_most(rows: int, columns: int, exponent: int, seed: int) -> None:
    """e4m3 has 3 bits of mantissa (half a step: 1/16 of the number) and steps of 2^-9 below 2^-6, times the scale."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * math.ldexp(
        1, exponent
    )
    _, scales = quantise(weight)
    by_number = scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    allowed = torch.maximum(weight.abs() / 16, by_number * 2.0**-10) * (1 + 1e-5)
    assert ((there_and_back(weight) - weight).abs() <= allowed).all()


def test_any_type_may_be_filled() -> None:
    weight = torch.randn(200, 130, generator=torch.Generator().manual_seed(1))
    numbers, scales = quantise(weight)
    exact = torch.empty(200, 130)
    dequantise(numbers, scales, exact)
    rounded = torch.empty(200, 130, dtype=torch.bfloat16)
    dequantise(numbers, scales, rounded)
    assert torch.equal(rounded, exact.to(torch.bfloat16))


def test_transformers_reads_the_same_numbers() -> None:
    """An implementation that is not ours reads what DeepSeek publishes."""
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    weight = torch.randn(300, 257, generator=torch.Generator().manual_seed(2))
    numbers, scales = quantise(weight)
    theirs = _dequantize_fp8_weight(numbers, scales, [BLOCK, BLOCK], torch.float32)
    ours = torch.empty_like(weight)
    dequantise(numbers, scales, ours)
    assert torch.equal(ours, theirs)
