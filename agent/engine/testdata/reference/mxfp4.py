"""Experts as gpt-oss is released: blocks of 32 values of 4 bits with a power of two for each block."""

import torch
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_BIAS = 127


def quantise(weights: Tensor) -> tuple[Tensor, Tensor]:
    """`[experts, inputs, outputs]`, as `transformers` holds them, to blocks `[experts, outputs, inputs / 32, 16]` and scales `[experts, outputs, inputs / 32]`.

    Values that are dequantised ones already come back as they were.
    """
    experts, inputs, outputs = weights.shape
    groups = weights.transpose(1, 2).reshape(experts, outputs, inputs // 32, 32)
    exponents = groups.abs().amax(-1).log2().floor().clamp(min=-100) - 2  # the largest of _VALUES is 1.5 * 2**2
    scaled = groups / torch.exp2(exponents)[..., None]
    nearest = (scaled.abs()[..., None] - _VALUES).abs().argmin(-1)
    codes = (nearest + 8 * (scaled < 0)).to(torch.uint8)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), (exponents + _BIAS).to(torch.uint8)


def dequantise(blocks: Tensor, scales: Tensor) -> Tensor:
    """`[experts, inputs, outputs]`, by the code with which `transformers` itself loads gpt-oss."""
    return convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
