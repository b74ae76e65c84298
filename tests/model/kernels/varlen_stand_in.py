"""What flash-attn's variable-length function computes and refuses, on any device and in any precision."""

import torch


def varlen_stand_in(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """flash_attn_varlen_func 2.8 as documented, and as its checks of arguments have it."""
    check_arguments(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, alibi_slopes)
    assert (dropout_p, return_attn_probs, block_table) == (0.0, False, None)
    before, after = (torch.inf if side < 0 else side for side in window_size)
    after = 0 if causal else after
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    outputs = []
    for number in range(len(cu_seqlens_q) - 1):
        queries = q[cu_seqlens_q[number] : cu_seqlens_q[number + 1]]
        keys, values = (
            x[cu_seqlens_k[number] : cu_seqlens_k[number + 1]].repeat_interleave(q.shape[1] // k.shape[1], 1)
            for x in (k, v)
        )
        num_queries, num_keys = len(queries), len(keys)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * scale
        if softcap > 0:
            scores = softcap * torch.tanh(scores / softcap)
        # Row i is aligned with column i + num_keys - num_queries: causal masks and ALiBi at the bottom right.
        from_diagonal = torch.arange(num_keys) - torch.arange(num_queries)[:, None] - (num_keys - num_queries)
        if alibi_slopes is not None:
            scores = scores - alibi_slopes[:, None, None] * from_diagonal.abs()
        hidden = (from_diagonal > after) | (from_diagonal < -before)
        # A row of zeros in the mask gives zeros.
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden, 0.0)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs)


def check_arguments(q, k, v, cu_q, cu_k, max_q, max_k, alibi_slopes):
    assert cu_q.dtype == cu_k.dtype == torch.int32 and cu_q.is_contiguous() and cu_k.is_contiguous()
    assert cu_q.shape == cu_k.shape and len(cu_q) > 1
    assert cu_q[-1] == q.shape[0] and cu_k[-1] == k.shape[0] == v.shape[0]
    assert max_q >= cu_q.diff().max() and max_k >= cu_k.diff().max()
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert q.shape[1] % k.shape[1] == 0 and q.shape[2] <= 256
    # The launch of a grid of no blocks fails.
    assert max_q > 0
    if alibi_slopes is not None:
        assert alibi_slopes.dtype == torch.float32 and alibi_slopes.shape == q.shape[1:2]
    elif max_q == 1 and q.shape[1] > k.shape[1]:
        assert q.shape[0] == len(cu_q) - 1, "then each document is reshaped to one query, and none may be empty"
