"""The elementwise parts of a block, each as one autograd function that saves little and passes memory few times.

Every one has its plain formula beside it: that one runs under torch.compile, which fuses it better
than we can, and is what the tests hold the fast one against.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from model.config import GATES


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """X [T, I] by weight [O, I] -> x weight^T [T, O], plus bias [O] and plus residual [T, O] where they are given."""
    if torch.compiler.is_compiling():
        product = F.linear(x, weight, bias)
        return product if residual is None else residual + product
    return _Linear.apply(x, weight, bias, residual)


class _Linear(torch.autograd.Function):
    """Remembers the weight itself; torch's own keeps a view, and with it what ZeRO-3 gathered, until backward."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return matmul_transposed(x, weight, residual, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad
        grad_x = matmul_transposed(grad, weight.t()) if needs_x else None
        grad_weight = grad.t() @ x if needs_weight else None
        grad_bias = grad.sum(0) if needs_bias else None
        return grad_x, grad_weight, grad_bias, grad if needs_residual else None


def matmul_transposed(
    a: torch.Tensor, b: torch.Tensor, plus: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The product of a [T, I] and b [O, I] transposed, plus [T, O] and bias [O] where given; outside autograd."""
    if a.device.type == "cpu" and a.dtype == torch.float32 and a.numel() and onednn_is_faster():
        if plus is None:
            return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b, bias, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(a.contiguous(), plus, b, bias, "add")
    if plus is None:
        return a @ b.t() if bias is None else torch.addmm(bias, a, b.t())
    return torch.addmm(plus if bias is None else plus + bias, a, b.t())


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN's fp32 product beats the one torch takes by itself on this CPU.

    By a tenth on Intel's, and twofold when cores are shared; on AMD's it is torch's own that is ahead, by a quarter.
    Told by the maker and never by timing: after a restart the same machine must compute the same bits.
    """
    cpu = Path("/proc/cpuinfo")
    amd = cpu.exists() and "AuthenticAMD" in cpu.read_text()
    return torch.backends.mkldnn.is_available() and not amd


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm (arXiv 1910.07467): x [..., M] / rms(x) * weight [M], computed in fp32 or better, in x's dtype."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling():
        return F.rms_norm(x, weight.shape, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        product = grad * normed
        grad_weight = product.flatten(0, -2).sum(0)
        along = product.mul_(weight).mean(-1, keepdim=True)
        grad_x = (grad * weight).sub_(normed.mul_(along)).mul_(scale)
        return grad_x, grad_weight, None


def rms_norm_1p(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The same times 1 + weight [M]; added in fp32 or better, for in bf16 a small weight would be lost."""
    exact = torch.promote_types(x.dtype, torch.float32)
    return rms_norm(x.to(exact), weight.to(exact) + 1, eps).to(x.dtype)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """LayerNorm (arXiv 1607.06450) over the last dim of x [..., M], times weight [M], plus bias [M] where given."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """[T, F] -> [T, F] by gelu (exact), gelu_tanh, silu or relu; gate and up [T, 2F] -> [T, F] by those of `GATES`.

    A gated activation (arXiv 2002.05202) is a function of the first half, times the second half.
    """
    if activation in ("relu", "silu"):
        return F.relu(x) if activation == "relu" else F.silu(x)
    if activation in _GELUS:
        return F.gelu(x, approximate=_GELUS[activation])
    if torch.compiler.is_compiling():
        gate, up = x.chunk(2, -1)
        return activate(gate, GATES[activation]) * up
    return _Gated.apply(x, GATES[activation])


_GELUS = {"gelu": "none", "gelu_tanh": "tanh"}
"""How torch is asked for them."""


class _Gated(torch.autograd.Function):
    """On CPUs some rows at a time, so that what one pass writes the next finds in cache."""

    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor, function: str) -> torch.Tensor:
        ctx.save_for_backward(gate_up)
        ctx.function = function
        gate, up = gate_up.chunk(2, -1)
        out = torch.empty_like(gate, memory_format=torch.contiguous_format)
        for rows in _row_blocks(out):
            _gate(gate[rows], function, out[rows]).mul_(up[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        result = torch.empty_like(gate_up)
        grad_gate, grad_up = result.chunk(2, -1)
        for rows in _row_blocks(grad):
            torch.mul(grad[rows], activate(gate[rows], ctx.function), out=grad_up[rows])
            _gate_backward(grad[rows] * up[rows], gate[rows], ctx.function, grad_gate[rows])
        return result, None


def _gate(x: torch.Tensor, function: str, out: torch.Tensor) -> torch.Tensor:
    if function in _GELUS:
        return torch.ops.aten.gelu.out(x, approximate=_GELUS[function], out=out)
    return torch.ops.aten.silu.out(x, out=out)


def _gate_backward(grad: torch.Tensor, x: torch.Tensor, function: str, out: torch.Tensor) -> None:
    if function in _GELUS:
        torch.ops.aten.gelu_backward.grad_input(grad, x, approximate=_GELUS[function], grad_input=out)
    else:
        torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=out)


def gate_by_sigmoid(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """X [T, F] times sigmoid(gate), gate [T, F] (arXiv 2505.06708, equation 5)."""
    if torch.compiler.is_compiling():
        return x * gate.sigmoid()
    return _SigmoidGate.apply(x, gate)


class _SigmoidGate(torch.autograd.Function):
    """Remembers the sigmoids: the gate is a part of a larger tensor, which would be kept whole."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        share = gate.sigmoid()
        ctx.save_for_backward(x, share)
        return x * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, share = ctx.saved_tensors
        return grad * share, torch.ops.aten.sigmoid_backward(grad * x, share)


def _row_blocks(x: torch.Tensor) -> Iterator[slice]:
    """Slices of the rows of [T, F] that hold about 2**18 elements each; one slice on a GPU."""
    step = max(2**18 // x.shape[-1], 1) if x.device.type == "cpu" else max(x.shape[0], 1)
    return (slice(start, start + step) for start in range(0, x.shape[0], step))


def rope_tables(positions: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary positions (arXiv 2104.09864).

    positions int [T], frequencies fp32 [R/2] in radians per token (`model.network.positions`) -> two fp32 [T, 1, R/2].
    """
    angles = positions[:, None].float() * frequencies
    return angles.cos()[:, None, :], angles.sin()[:, None, :]


def rotate_split(
    qkv: torch.Tensor, num_heads: int, num_kv_heads: int, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Takes [T, H + 2G, D] apart into q [T, H, D], k and v [T, G, D], with q and k rotated as `rotate` does."""
    if torch.compiler.is_compiling():
        q, k, v = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v
    return _RotateSplit.apply(qkv, num_heads, num_kv_heads, cos, sin)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """X [T, H, D] with the first R dims of each head rotated to their positions, in fp32 or better.

    Dims i and i + R/2 turn together (Hugging Face's order of weights). cos and sin [T, 1, R/2] as of `rope_tables`.
    """
    if torch.compiler.is_compiling():
        return _rotate(x, cos, sin)
    return _Rotate.apply(x, cos, sin)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    width = 2 * cos.shape[-1]
    first, second = x[..., :width].chunk(2, -1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), -1)


def _rotate_into(out: torch.Tensor, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> None:
    """Out = x turned by sign times the angle."""
    if x.dtype not in (torch.float32, torch.float64):
        out.copy_(_rotate(x, cos, sin * sign))
        return
    width = 2 * cos.shape[-1]
    if width < x.shape[-1]:
        out[..., width:] = x[..., width:]
        out, x = out[..., :width], x[..., :width]
    first, second = x.chunk(2, -1)
    out_first, out_second = out.chunk(2, -1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=sign)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        _rotate_into(out, x, cos, sin, 1.0)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        out = torch.empty_like(grad, memory_format=torch.contiguous_format)
        cos, sin = ctx.saved_tensors
        _rotate_into(out, grad, cos, sin, -1.0)
        return out, None, None


class _RotateSplit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: torch.Tensor, num_heads: int, num_kv_heads: int, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.sizes = (num_heads, num_kv_heads, num_kv_heads)
        ctx.save_for_backward(cos, sin)
        q, k, v = qkv.split(ctx.sizes, dim=1)
        rotated_q, rotated_k = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k))
        _rotate_into(rotated_q, q, cos, sin, 1.0)
        _rotate_into(rotated_k, k, cos, sin, 1.0)
        return rotated_q, rotated_k, v.clone(memory_format=torch.contiguous_format)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_q: torch.Tensor, grad_k: torch.Tensor, grad_v: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None, None]:
        cos, sin = ctx.saved_tensors
        result = grad_q.new_empty(grad_q.shape[0], sum(ctx.sizes), grad_q.shape[2])
        q, k, v = result.split(ctx.sizes, dim=1)
        _rotate_into(q, grad_q, cos, sin, -1.0)
        _rotate_into(k, grad_k, cos, sin, -1.0)
        v.copy_(grad_v)
        return result, None, None, None, None
