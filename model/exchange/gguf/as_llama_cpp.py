"""Our model with llama.cpp's roundings, so that what is left of a difference is a mistake and no rounding.

    a product by a matrix   what it is multiplied by is rounded to the matrix's type: f16, bf16, or q8_0, 32 numbers
                            with one scale
    GELU with tanh          looked up for a 16-bit number, and one itself, between -10 and 10

Everything else is float32 in both.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from model.config import ModelConfig
from model.network.blocks import FeedForward
from model.network.layers import CutColumns, CutRows
from model.network.transformer import Transformer

GELU = "gelu_tanh"
BLOCK, STEPS = 32, 127
"""Numbers of q8_0 that share a scale, and how many steps the largest of them has."""
TABLE_END = 10.0
"""Where GELU is as good as 0 or its argument."""


def rounds(config: ModelConfig, matrix_type: str) -> bool:
    """Whether there is any rounding."""
    return matrix_type in ROUNDED or config.plain_activation == GELU


def round_as_llama_cpp(model: Transformer, matrix_type: str) -> Transformer:
    """The model, from now on with the roundings that a file with matrices of this type (`file.TYPES`) means."""
    if (rounded := ROUNDED.get(matrix_type)) is not None:
        for module in model.modules():
            if isinstance(module, CutRows | CutColumns):
                module.register_forward_pre_hook(partial(_rounded_input, rounded))
    if model.config.plain_activation == GELU:
        for module in model.modules():
            if isinstance(module, FeedForward):
                module.forward = partial(_looked_up, module)  # type: ignore[method-assign]
    return model


def gelu_by_table(x: torch.Tensor) -> torch.Tensor:
    """GELU's tanh form of x float32, of 16-bit precision where it is neither 0 nor x."""
    found = F.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= -TABLE_END, 0.0, torch.where(x >= TABLE_END, x, found))


def _as_q8_0(x: torch.Tensor) -> torch.Tensor:
    """What is left of x float32 [T, M] in blocks of q8_0."""
    blocks = x.unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().amax(-1, keepdim=True)
    whole = (blocks * torch.where(largest > 0, STEPS / largest, 0.0)).round()
    return (whole * (largest / STEPS).half().float()).flatten(-2)


ROUNDED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "f16": lambda x: x.half().float(),
    "bf16": lambda x: x.bfloat16().float(),
    "q8_0": _as_q8_0,
}
"""What a matrix of a type is multiplied by, of x float32 [T, M]."""


def _rounded_input(
    rounded: Callable[[torch.Tensor], torch.Tensor], _: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    return (rounded(inputs[0]), *inputs[1:])


def _looked_up(layer: FeedForward, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """`FeedForward.forward` with GELU from the table."""
    if not layer.is_gated:
        return layer.down(gelu_by_table(layer.up(x)), residual)
    gate, up = layer.gate_up(x).chunk(2, -1)
    return layer.down(gelu_by_table(gate) * up, residual)
