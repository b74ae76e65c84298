"""Attention by flash-attn's variable-length kernel (arXiv 2307.08691): CUDA, fp16 and bf16.

Prefix attention needs no mask: prefix tokens against prefix tokens, bidirectional, is one call;
the tokens after them against all tokens of their document, causal, is another. flash-attn aligns a
causal call at the bottom right when there are fewer queries than keys, which is what the second needs.
Gradients are summed in a fixed order, for a resumed run must repeat its steps bit for bit.
"""

import functools
import importlib.util
from collections.abc import Callable

import torch

from model.kernels.bias import Alibi, AttentionBias
from model.kernels.pattern import AttentionPattern
from model.kernels.scoring import PLAIN, Scoring

MAX_HEAD_DIM = 256
LEAST_CAPABILITY = (8, 0)
"""Oldest GPUs that its kernels are compiled for (Ampere)."""
LEAST_MAXIMUM = 2
"""Least we say of the most queries of a document: told 1, with grouped heads, flash-attn takes none to be empty."""


@functools.cache
def installed() -> bool:
    """Whether flash-attn is there to import."""
    return importlib.util.find_spec("flash_attn") is not None


@functools.cache
def varlen_kernel() -> Callable[..., torch.Tensor]:
    """flash-attn's `flash_attn_varlen_func`."""
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func


def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pattern: AttentionPattern,
    bias: AttentionBias | None = None,
    scoring: Scoring = PLAIN,
) -> torch.Tensor:
    """Attention of a pack with any allowed pair: q [Tq, H, D], k and v [Tk, G, D], fp16 or bf16 -> [Tq, H, D].

    flash-attn caps scores before it adds slopes, as we do; a cap of 0 means none there.
    """
    assert bias is None or isinstance(bias, Alibi), "resolve_backend refuses flash where the bias is learned"
    slopes = None if bias is None else bias.slopes.float()
    kernel = functools.partial(
        varlen_kernel(),
        softmax_scale=scoring.scale,
        softcap=scoring.softcap or 0.0,
        alibi_slopes=slopes,
        deterministic=True,
    )
    return attend_by_varlen_calls(kernel, q, k, v, pattern)


def attend_by_varlen_calls(
    kernel: Callable[..., torch.Tensor], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pattern: AttentionPattern
) -> torch.Tensor:
    """One call where all documents are causal or all bidirectional, else two: squares, and the queries after them.

    kernel(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=, window_size=) aligns as flash-attn
    does; the window is the keys seen before and after a query's place, -1 for all that there are.
    """
    window = pattern.window
    around = (-1, -1) if window is None else (window // 2, window // 2)
    before = (-1, -1) if window is None else (window - 1, 0)
    if pattern.is_causal or pattern.is_bidirectional:
        longest = max(pattern.max_queries, LEAST_MAXIMUM), pattern.max_keys
        borders = pattern.cu_seqlens_q, pattern.cu_seqlens_k
        if pattern.is_bidirectional:
            return kernel(q, k, v, *borders, *longest, causal=False, window_size=around)
        return kernel(q, k, v, *borders, *longest, causal=True, window_size=before)
    split = pattern.split
    queries = q.index_select(0, split.square_queries)
    keys, values = (x.index_select(0, split.square_keys) for x in (k, v))
    longest = max(split.max_square_queries, LEAST_MAXIMUM), split.max_square_keys
    square = kernel(
        queries, keys, values, split.cu_square_queries, split.cu_square_keys, *longest, causal=False, window_size=around
    )
    queries = q.index_select(0, split.causal_queries)
    longest = max(split.max_causal_queries, LEAST_MAXIMUM), pattern.max_keys
    causal = kernel(
        queries, k, v, split.cu_causal_queries, pattern.cu_seqlens_k, *longest, causal=True, window_size=before
    )
    return torch.cat((square, causal)).index_select(0, split.inverse)
