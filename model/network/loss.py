"""Cross-entropy straight from hidden states: the logits of the whole pack are never alive at once.

Each chunk of tokens gets its logits, its loss and its gradients in one go, so the backward pass
has nothing left to do but to scale them, and no logits are computed twice.
"""

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from model.kernels.ops import matmul_transposed
from model.network.tensor_ranks import TensorRanks

IGNORED = -100
"""Label of a position that is no target."""
CHUNK_ELEMENTS = (2**25, 2**28)
"""Logits alive at once, about, on CPUs and on GPUs: every chunk reads the weight and reads and writes its gradient,
which must not cost more than the products. 128 MB of fp32 do on a CPU (32 MB: a fifth slower), 1 GB on a GPU."""

SLAB_ELEMENTS = 2**24
"""Elements of the weight's gradient that are rounded or added up at a time: enough to fill a GPU, and 32 MB of bf16."""
ENOUGH_TARGETS = 0.8
"""Share of positions that are targets from which on all go through the output projection."""


class Shaping(NamedTuple):
    """What products with the output matrix become before they are logits: cap tanh(scale products / cap)."""

    scale: float = 1.0
    """Times the products."""
    softcap: float | None = None
    """Logits stay within this on either side; None leaves them as they are."""

    def logits(self, products: torch.Tensor) -> torch.Tensor:
        """Of products of any shape."""
        scaled = products if self.scale == 1 else products * self.scale
        return scaled if self.softcap is None else (scaled / self.softcap).tanh() * self.softcap

    def with_slope(self, products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Logits in the place of products, and their derivatives by these; outside autograd."""
        if self.softcap is None:
            return products if self.scale == 1 else products.mul_(self.scale), self.scale
        bent = products.mul_(self.scale / self.softcap).tanh_()
        slope = bent.square().mul_(-self.scale).add_(self.scale)
        return bent.mul_(self.softcap), slope


PLAIN = Shaping()
"""Products are logits."""


class LossOutput(NamedTuple):
    """Loss over the targets of one pack, as sums: the caller divides by the targets of the global batch."""

    loss_sum: torch.Tensor
    """fp32 scalar: cross-entropy + z_loss * log(Z)^2, summed over targets; carries the gradient."""
    cross_entropy_sum: torch.Tensor
    """fp32 scalar without gradient: cross-entropy summed over targets, in nats."""
    num_targets: torch.Tensor
    """int64 scalar: number of targets."""
    further_sums: torch.Tensor | None = None
    """fp32 [D] without gradient: cross-entropy of each further depth (multi_token.py), summed over its targets."""


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    z_loss: float = 0.0,
    chunk_size: int | None = None,
    ranks: TensorRanks | None = None,
    bias: torch.Tensor | None = None,
    shaping: Shaping = PLAIN,
) -> LossOutput:
    """Cross-entropy of softmax(shaping(hidden weight^T + bias)) against labels, summed over targets.

    hidden [T, M], weight [V, M], bias [V] of the same dtype, labels int64 [T] in 0 ... V-1 or -100 (no target).
    z_loss weighs the square of the log of the partition function Z (arXiv 2204.02311, section 5).
    Logits become fp32 before the softmax. The result can be differentiated once. On CPUs positions that are no
    targets are left out where they are many; on a GPU it would have to be waited for to learn which they are.
    Where tensor ranks share the vocabulary, weight [V / size, M] and bias are this rank's part, and all get the same
    sums.
    """
    if ranks is not None:
        hidden = ranks.whole(hidden)
    num_targets = (labels != IGNORED).sum()
    if hidden.device.type == "cpu" and num_targets < ENOUGH_TARGETS * labels.shape[0]:
        place = (labels != IGNORED).nonzero()[:, 0]
        hidden, labels = hidden.index_select(0, place), labels.index_select(0, place)
    if chunk_size is None:
        chunk_size = max(CHUNK_ELEMENTS[hidden.device.type == "cuda"] // weight.shape[0], 256)
    learned = [each for each in (hidden, weight, bias) if each is not None and each.requires_grad]
    how = _How(z_loss, chunk_size, torch.is_grad_enabled() and bool(learned), shaping, ranks)
    loss, cross_entropy = _ChunkedCrossEntropy.apply(hidden, weight, bias, labels, how)
    return LossOutput(loss, cross_entropy, num_targets)


class _How(NamedTuple):
    """What decides how a loss is computed, besides its tensors."""

    z_loss: float
    chunk_size: int
    needs_grad: bool
    shaping: Shaping
    ranks: TensorRanks | None


class _Gradients(NamedTuple):
    """Of a loss; those of a chunk are written into the first and added to the others."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        how: _How,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        sums = torch.zeros(2, dtype=exact, device=hidden.device)
        grads = None
        if how.needs_grad:
            # one chunk gives the whole gradient at once, which then needs no more digits than it will be rounded to
            summed = weight.dtype if hidden.shape[0] <= how.chunk_size else exact
            of_bias = None if bias is None else torch.zeros_like(bias, dtype=exact)
            grads = _Gradients(torch.empty_like(hidden), torch.zeros_like(weight, dtype=summed), of_bias)
        for start in range(0, hidden.shape[0], how.chunk_size):
            rows = slice(start, start + how.chunk_size)
            into = grads._replace(hidden=grads.hidden[rows]) if grads else None
            sums += _chunk(hidden[rows], weight, bias, labels[rows], how, into)
        ctx.grads, ctx.weight_dtype = grads, weight.dtype
        loss, cross_entropy = sums.unbind()
        loss, cross_entropy = loss.clone(), cross_entropy.clone()
        ctx.mark_non_differentiable(cross_entropy)
        return loss, cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, _: torch.Tensor) -> tuple:
        if ctx.grads is None:
            raise RuntimeError("the loss was already differentiated once; its gradients are not kept")
        grad_hidden, grad_weight, grad_bias = ctx.grads
        ctx.grads = None
        grad_hidden.mul_(grad_loss)
        if grad_weight.dtype == grad_loss.dtype:
            grad_weight = grad_weight.mul_(grad_loss).to(ctx.weight_dtype)
        else:
            for rows in _slabs(grad_weight):
                rows.copy_(rows.to(grad_loss.dtype).mul_(grad_loss))
        if grad_bias is not None:
            grad_bias = grad_bias.mul_(grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, grad_bias, None, None


def _chunk(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    how: _How,
    grads: _Gradients | None,
) -> torch.Tensor:
    """[2] loss and cross-entropy summed over the chunk; writes hidden's gradient, adds to the others."""
    is_target, z_loss = labels != IGNORED, how.z_loss
    products = matmul_transposed(hidden, weight).to(torch.promote_types(hidden.dtype, torch.float32))
    logits, slope = how.shaping.with_slope(products if bias is None else products.add_(bias))
    softmax = _softmax(logits, labels) if how.ranks is None else _shared_softmax(logits, labels, how.ranks)
    probabilities, column, is_here, at_label, log_z = softmax
    cross_entropy = ((log_z - at_label)[:, 0] * is_target).sum()
    loss = cross_entropy + z_loss * (log_z[:, 0].square() * is_target).sum() if z_loss else cross_entropy
    if grads is not None:
        if z_loss:
            probabilities.mul_(1 + 2 * z_loss * log_z)
        grad_products = probabilities.scatter_add_(1, column, -is_here)
        if how.shaping != PLAIN:
            grad_products.mul_(slope)
        if grads.bias is not None:
            grads.bias.addmv_(grad_products.t(), is_target.to(grad_products.dtype))
        mask = is_target.to(hidden.dtype)[:, None]
        _add_gradients(grad_products.to(hidden.dtype), hidden, weight, mask, grads.hidden, grads.weight)
    return torch.stack((loss, cross_entropy))


class _Softmax(NamedTuple):
    """What a chunk's logits [C, V], or a rank's part of them, come to."""

    probabilities: torch.Tensor
    """[C, V], in the place of the logits."""
    column: torch.Tensor
    """int64 [C, 1], where the label stands."""
    is_here: torch.Tensor
    """[C, 1], 1 where this rank has the label's column and 0 elsewhere."""
    at_label: torch.Tensor
    """[C, 1], the label's logit."""
    log_z: torch.Tensor
    """[C, 1], logarithm of the partition function."""


def _softmax(logits: torch.Tensor, labels: torch.Tensor) -> _Softmax:
    column = labels.clamp(min=0)[:, None]
    at_label, largest = logits.gather(1, column), logits.amax(-1, keepdim=True)
    probabilities = torch.softmax(logits, -1, out=logits)
    # The largest probability is at least 1/V, so its logarithm is exact however unlikely the label is.
    log_z = largest - probabilities.amax(-1, keepdim=True).log()
    return _Softmax(probabilities, column, torch.ones_like(at_label), at_label, log_z)


def _shared_softmax(logits: torch.Tensor, labels: torch.Tensor, ranks: TensorRanks) -> _Softmax:
    """The same over the columns of all ranks (arXiv 1909.08053, section 3): three numbers a row travel, no logits."""
    place = labels - ranks.rank * logits.shape[1]
    is_here = ((place >= 0) & (place < logits.shape[1]))[:, None]
    column = place.clamp(0, logits.shape[1] - 1)[:, None]
    at_label = logits.gather(1, column).masked_fill(~is_here, 0)
    largest = ranks.max(logits.amax(-1, keepdim=True))
    powers = logits.sub_(largest).exp_()
    at_label, total = ranks.sum(torch.stack((at_label, powers.sum(-1, keepdim=True)))).unbind()
    return _Softmax(powers.div_(total), column, is_here.to(logits.dtype), at_label, largest + total.log())


def _add_gradients(
    grad_logits: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    grad_hidden: torch.Tensor,
    grad_weight: torch.Tensor,
) -> None:
    """Sets hidden's gradient and adds to weight's, or sets it too; mask [C, 1] is 0 on rows without a target."""
    torch.mul(matmul_transposed(grad_logits, weight.t()), mask, out=grad_hidden)
    masked, exact = hidden * mask, torch.promote_types(grad_logits.dtype, torch.float32)
    if grad_weight.dtype != exact:  # this is the only chunk
        torch.mm(grad_logits.t(), masked, out=grad_weight)
        return
    if grad_logits.dtype == exact:
        grad_weight.addmm_(grad_logits.t(), masked)
        return
    for rows, columns in zip(_slabs(grad_weight), grad_logits.t().split(_slab_rows(grad_weight)), strict=True):
        rows.add_(columns @ masked)


def _slabs(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A matrix [V, M] in groups of rows, so that what is made of one at a time is small beside it."""
    return weight.split(_slab_rows(weight))


def _slab_rows(weight: torch.Tensor) -> int:
    return max(SLAB_ELEMENTS // weight.shape[1], 1)
