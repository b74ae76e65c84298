"""Torch's own build of flash-attn's variable-length kernel: for CUDA machines where flash-attn itself is not installed.

It takes the calls of flash.py, with grouped heads and causal masks aligned at the bottom right, but no ALiBi slopes
and no soft cap.
torch.nn.attention.varlen sums gradients in a fixed order only while torch is told to be deterministic everywhere, so
its two operators are called here one by one, the backward one under that setting alone.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from model.kernels.flash import attend_by_varlen_calls
from model.kernels.pattern import AttentionPattern

HEAD_DIM_MULTIPLE = 8
"""flash-attn pads other heads; torch does not."""


def installed() -> bool:
    """Whether this build of torch has the kernel; builds for CPUs have not."""
    return torch.backends.cuda.is_flash_attention_available()


def varlen_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pattern: AttentionPattern, scale: float | None = None
) -> torch.Tensor:
    """Attention of a pack with any allowed pair: q [Tq, H, D], k and v [Tk, G, D], fp16 or bf16 -> [Tq, H, D].

    Products of queries and keys are multiplied by `scale`, D^-0.5 where none is given.
    """
    return attend_by_varlen_calls(functools.partial(_kernel, scale=scale), q, k, v, pattern)


def _kernel(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    window_size: tuple[int, int],
    scale: float | None,
) -> torch.Tensor:
    return _Varlen.apply(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, window_size, scale)


class _Varlen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        causal: bool,
        window_size: tuple[int, int],
        scale: float | None,
    ) -> torch.Tensor:
        grouped = [q.shape[1] != k.shape[1]] if _asks_for_grouped_heads() else []
        sizes = (max_seqlen_q, max_seqlen_k)
        window = [window_size[0], 0 if causal else window_size[1]]
        out, log_sums, random_state = torch.ops.torch_attn._varlen_attn(
            q, k, v, cu_seqlens_q, cu_seqlens_k, *sizes, causal, scale, window, *grouped
        )
        ctx.save_for_backward(q, k, v, out, log_sums, cu_seqlens_q, cu_seqlens_k, random_state)
        ctx.sizes, ctx.causal, ctx.window, ctx.scale = sizes, causal, window, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *tensors, random_state = ctx.saved_tensors
        with _deterministic():
            grads = torch.ops.torch_attn._varlen_attn_backward(
                grad.contiguous(), *tensors, *ctx.sizes, ctx.causal, random_state, ctx.scale, ctx.window
            )
        return *grads, None, None, None, None, None, None, None


@functools.cache
def _asks_for_grouped_heads() -> bool:
    """Whether this torch wants to be told of grouped heads; 2.11 takes them without. Registers the operators."""
    from torch.nn.attention import varlen

    return "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Has torch take only kernels that give the same bits each time."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch._C._set_deterministic_algorithms(True, warn_only=False)
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(before[0], warn_only=before[1])
