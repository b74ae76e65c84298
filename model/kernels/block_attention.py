"""Attention by blocks of queries, forward and backward: on CPUs faster than torch's own kernel, and elsewhere exact.

It is flash attention (arXiv 2205.14135) with whole rows of scores for a block of queries at a time, which a core's
cache holds, and all query heads of a key head as rows of one matrix product. The products of a block reach from the
first key that one of its queries sees to the last one, so prefixes need no mask and nothing is spent on what nobody
sees but a triangle in a block, or, with a window, one at either end.
Scores are in units of log 2:

    forward    s = q k^T + bias;  e = exp2(s - max s);  out = e v / sum e;  log_sum = max s + log2 sum e
    backward   p = exp2(q k^T + bias - log_sum);  ds = p * (dout v^T - dout . out)
               dq = ds k;  dk = ds^T q;  dv = p^T dout

A bias by distance is a table whose columns any block shares; its gradient is ds, summed by distance. Where scores have
a soft cap, t = tanh(q k^T / cap) is computed anew in the backward pass:

    forward    s = cap t + bias
    backward   dt = ds (1 - t^2), and dq, dk from it
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from model.kernels.bias import AttentionBias
from model.kernels.pattern import Document
from model.kernels.scoring import PLAIN, Scoring

MIN_LENGTH = 192
"""Shorter documents are left to torch, whose one call is faster than our many on so little work."""
BLOCK = 64
"""Queries taken at once."""
TOGETHER = 2**20
"""Scores alive at once, about: 4 MB in fp32. Documents of one size share calls until then."""
TOGETHER_ON_GPU = 2**24
"""The same where a call costs more than it does here: 64 MB, of which a backward pass has four."""
LOG2_E = math.log2(math.e)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    document: Document,
    bias: AttentionBias | None = None,
    scoring: Scoring = PLAIN,
) -> torch.Tensor:
    """Attention of B documents of one kind, in fp32 or better whatever they come in.

    q [B * document.num_queries, H, D], k and v [B * document.num_keys, G, D] -> [B * document.num_queries, H, D].
    """
    dtype = q.dtype
    q, k, v = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, v))
    by_distance = None
    if bias is not None:
        first, last = _distances(document)
        by_distance = bias.values(torch.arange(first, last + 1, device=q.device)).to(q.dtype)
    return _Attention.apply(q, k, v, by_distance, document, scoring).to(dtype)


class _Block(NamedTuple):
    start: int
    """Queries from here ..."""
    stop: int
    """... to here, ..."""
    first_key: int
    """... and the keys from here, the first that the first of these queries sees, ..."""
    end_key: int
    """... to here, behind the last that the last of them sees."""
    before: int
    """Each of the last so many queries misses one key more of the first ones than the query before it."""
    after: int
    """Each of the first so many queries misses one key more of the last ones than the query after it."""

    @property
    def keys(self) -> slice:
        """Its keys."""
        return slice(self.first_key, self.end_key)


@functools.lru_cache(maxsize=256)
def _blocks(document: Document) -> tuple[_Block, ...]:
    blocks = [_square_block(document, start) for start in range(0, document.num_square, BLOCK)]
    blocks += [_causal_block(document, start) for start in range(document.num_square, document.num_queries, BLOCK)]
    return tuple(blocks)


def _square_block(document: Document, start: int) -> _Block:
    stop, prefix = min(start + BLOCK, document.num_square), document.prefix
    if document.window is None:
        return _Block(start, stop, 0, prefix, 0, 0)
    first, end = start - document.around, stop + document.around
    before, after = (max(stop - start - max(beyond, 0), 0) for beyond in (-first, end - prefix))
    return _Block(start, stop, max(first, 0), min(end, prefix), before, after)


def _causal_block(document: Document, start: int) -> _Block:
    stop = min(start + BLOCK, document.num_queries)
    first = start + document.first_place - document.before
    before = 0 if document.window is None else max(stop - start - max(-first, 0), 0)
    return _Block(start, stop, max(first, 0), stop + document.first_place, before, stop - start)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        by_distance: torch.Tensor | None,
        document: Document,
        scoring: Scoring,
    ) -> torch.Tensor:
        head_dim, num_groups = q.shape[2], k.shape[1]
        queries = _by_group(q * (scoring.factor(head_dim) * _unit(scoring)), document.num_queries, num_groups)
        keys, values = (_by_group(x, document.num_keys, num_groups).flatten(1, 2) for x in (k, v))
        bias = (
            None
            if by_distance is None
            else _to_table(by_distance * LOG2_E, min(BLOCK, document.num_queries), num_groups)
        )
        out, log_sums = torch.empty_like(queries), torch.empty_like(queries[..., :1])
        for part, groups in _parts(document, queries, num_groups, bias is not None):
            table = None if bias is None else bias[groups]
            given = queries[part], keys[part], values[part], table, scoring.softcap
            _forward(document, *given, out[part], log_sums[part])
        ctx.num_groups, ctx.document, ctx.scoring = num_groups, document, scoring
        ctx.save_for_backward(queries, keys, values, bias, out, log_sums)
        return _from_groups(out, num_groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        queries, keys, values, bias, out, log_sums = ctx.saved_tensors
        document, num_groups, scoring = ctx.document, ctx.num_groups, ctx.scoring
        grads = _by_group(grad, document.num_queries, num_groups)
        products = (grads * out).sum(-1, keepdim=True)
        grad_q = torch.empty_like(queries)
        grad_k, grad_v = (torch.zeros_like(x.mT, memory_format=torch.contiguous_format) for x in (keys, values))
        grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
        for part, groups in _parts(document, queries, num_groups, bias is not None):
            given = queries[part], log_sums[part], grads[part], products[part], keys[part], values[part]
            table, grad_table = (None if x is None else x[groups] for x in (bias, grad_bias))
            _backward(document, *given, table, scoring.softcap, grad_q[part], grad_k[part], grad_v[part], grad_table)
        grad_q.mul_(scoring.factor(keys.shape[2]))
        grad_k.mul_(1 / _unit(scoring))
        q, k, v = (_from_groups(x, num_groups) for x in (grad_q, grad_k.mT, grad_v.mT))
        return q, k, v, None if grad_bias is None else _from_table(grad_bias), None, None


def _unit(scoring: Scoring) -> float:
    """What scaled queries are multiplied by: their products are exponents of 2, or with a cap what tanh is taken of."""
    return LOG2_E if scoring.softcap is None else 1 / scoring.softcap


def _by_group(x: torch.Tensor, length: int, num_groups: int) -> torch.Tensor:
    """[B L, H, D] -> [B G, L, H/G, D]: key heads of each document apart."""
    return x.unflatten(1, (num_groups, -1)).unflatten(0, (-1, length)).transpose(1, 2).flatten(0, 1).contiguous()


def _from_groups(x: torch.Tensor, num_groups: int) -> torch.Tensor:
    """[B G, L, H/G, D] or [B G, L, D] -> [B L, H, D]."""
    x = x.unflatten(0, (-1, num_groups)).transpose(1, 2)
    return x.reshape(x.shape[0] * x.shape[1], -1, x.shape[-1])


def _parts(
    document: Document, queries: torch.Tensor, num_groups: int, whole_groups: bool
) -> Iterator[tuple[slice, slice]]:
    """Slices of the first dim of queries [S, L, H/G, D] whose scores may be alive together, and the key heads in each.

    With `whole_groups` a slice holds some of the key heads of one document, or all of several.
    """
    widest = max(block.end_key - block.first_key for block in _blocks(document))
    together = TOGETHER if queries.device.type == "cpu" else TOGETHER_ON_GPU
    step = max(together // (BLOCK * queries.shape[2] * widest), 1)
    if whole_groups:
        fit = step // num_groups * num_groups
        step = fit or max(size for size in range(1, step + 1) if num_groups % size == 0)
    for start in range(0, len(queries), step):
        first = start % num_groups
        yield slice(start, start + step), slice(first, first + step)


def _forward(
    document: Document,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    softcap: float | None,
    out: torch.Tensor,
    log_sums: torch.Tensor,
) -> None:
    """Key heads of documents, S of them: queries [S, Lq, H/G, D], keys, values [S, Lk, D].

    Sets out [S, Lq, H/G, D] and log_sums [S, Lq, H/G, 1], the logarithms of the sums of exp2(scores).
    """
    for block in _blocks(document):
        start, stop = block.start, block.stop
        rows = queries[:, start:stop].flatten(1, 2)
        scores = torch.bmm(rows, keys[:, block.keys].mT)
        if softcap is not None:
            scores.tanh_().mul_(softcap * LOG2_E)
        if bias is not None:
            _by_table(scores, block, bias).add_(_of_table(bias, block, document))
        _hide(scores, block)
        largest = scores.amax(-1, keepdim=True)
        sums = scores.sub_(largest).exp2_().sum(-1, keepdim=True)
        result = torch.bmm(scores, values[:, block.keys]).div_(sums)
        out[:, start:stop] = result.unflatten(1, (stop - start, -1))
        log_sums[:, start:stop] = sums.log2_().add_(largest).unflatten(1, (stop - start, -1))


def _backward(
    document: Document,
    queries: torch.Tensor,
    log_sums: torch.Tensor,
    grads: torch.Tensor,
    products: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    softcap: float | None,
    grad_q: torch.Tensor,
    grad_k: torch.Tensor,
    grad_v: torch.Tensor,
    grad_bias: torch.Tensor | None,
) -> None:
    """As above, with grads [S, Lq, H/G, D], the outputs' gradients, and products [S, Lq, H/G, 1] of the two.

    Sets grad_q [S, Lq, H/G, D] and adds to grad_k and grad_v [S, D, Lk], all but for their constant factors, and to
    grad_bias, which is laid out as the bias.
    """
    for block in _blocks(document):
        start, stop = block.start, block.stop
        rows, row_sums, grad_rows, row_products = (
            x[:, start:stop].flatten(1, 2) for x in (queries, log_sums, grads, products)
        )
        if softcap is None:
            probabilities = torch.baddbmm(row_sums, rows, keys[:, block.keys].mT, beta=-1)
        else:
            bent = torch.bmm(rows, keys[:, block.keys].mT).tanh_()
            probabilities = (bent * (softcap * LOG2_E)).sub_(row_sums)
        if bias is not None:
            _by_table(probabilities, block, bias).add_(_of_table(bias, block, document))
        _hide(probabilities, block)
        grad_v[..., block.keys].baddbmm_(grad_rows.mT, probabilities.exp2_())
        grad_scores = torch.baddbmm(row_products, grad_rows, values[:, block.keys].mT, beta=-1)
        grad_scores.mul_(probabilities)
        if grad_bias is not None:
            _of_table(grad_bias, block, document).add_(_by_table(grad_scores, block, grad_bias).sum(0))
        if softcap is not None:
            grad_scores.addcmul_(grad_scores, bent.square_(), value=-1)
        grad_q[:, start:stop] = torch.bmm(grad_scores, keys[:, block.keys]).unflatten(1, (stop - start, -1))
        grad_k[..., block.keys].baddbmm_(rows.mT, grad_scores)


def _hide(scores: torch.Tensor, block: _Block) -> None:
    """Makes -inf what queries of a block of n must not see in scores [S, n * H/G, keys]."""
    rows = scores.unflatten(1, (block.stop - block.start, -1))
    future, past = _corners(scores.device)
    if block.after:
        rows[:, : block.after, :, rows.shape[-1] - block.after :].add_(future[: block.after, :, : block.after])
    if block.before:
        rows[:, rows.shape[1] - block.before :, :, : block.before].add_(past[: block.before, :, : block.before])


@functools.cache
def _corners(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """[BLOCK, 1, BLOCK] of a block's own queries and keys: -inf where the query must not see the key, else 0.

    The first hides what comes after a query, the second what is beyond the other end of a window.
    """
    hidden = torch.full((BLOCK, BLOCK), -torch.inf, dtype=torch.float32, device=device)
    return hidden.triu(1)[:, None, :], hidden.tril(-1)[:, None, :]


@functools.lru_cache(maxsize=256)
def _distances(document: Document) -> tuple[int, int]:
    """First and last distance in the table of a bias.

    The table is [G, n, H/G, W] for blocks of up to n queries. Row i and column t are of the distance t - i, plus that
    of the first key from the first query in the block where it is farthest: what any block needs is some columns of it.
    """
    blocks = _blocks(document)
    first = min(block.first_key - block.start for block in blocks) - (min(BLOCK, document.num_queries) - 1)
    last = max(block.end_key - block.start for block in blocks) - 1
    return first - document.first_place, last - document.first_place


def _to_table(by_distance: torch.Tensor, num_rows: int, num_groups: int) -> torch.Tensor:
    """[H, W + n - 1] -> [G, n, H/G, W]."""
    rows = by_distance.unfold(1, by_distance.shape[1] - (num_rows - 1), 1).flip(1)
    return rows.unflatten(0, (num_groups, -1)).transpose(1, 2).contiguous()


def _from_table(grad: torch.Tensor) -> torch.Tensor:
    """The sums over what came from the same distance: [G, n, H/G, W] -> [H, W + n - 1]."""
    num_rows, width = grad.shape[1], grad.shape[3]
    rows = F.pad(grad.transpose(1, 2).flatten(0, 1).flip(1), (0, num_rows))
    # Read in lines one shorter than they are, each moves one to the right of the one before.
    lines = rows.flatten(1)[:, : num_rows * (width + num_rows - 1)].unflatten(1, (num_rows, -1))
    return lines.sum(1)


def _of_table(table: torch.Tensor, block: _Block, document: Document) -> torch.Tensor:
    """View [g, n, H/G, keys] of a table for a block of n queries."""
    farthest = _distances(document)[0] + document.first_place + min(BLOCK, document.num_queries) - 1
    first = block.first_key - block.start - farthest
    return table[:, : block.stop - block.start, :, first : first + block.end_key - block.first_key]


def _by_table(scores: torch.Tensor, block: _Block, table: torch.Tensor) -> torch.Tensor:
    """View [b, g, n, H/G, keys] of scores [S, n * H/G, keys] of all documents and the key heads of the table."""
    groups, _, heads, _ = table.shape
    return scores.view(-1, groups, block.stop - block.start, heads, block.end_key - block.first_key)
