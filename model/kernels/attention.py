"""Attention of packed documents: one function, four backends, chosen by name.

`flash` is flash-attn's varlen kernel (CUDA), `varlen` is torch's build of it, `sdpa` is torch's own kernel, document by
document, on any device, or ours where that is faster or the only one (block_attention.py), and `reference` is the
definition: a dense mask in float64, for tests. `auto` is the first of the first three that runs.
"""

from itertools import groupby

import torch
import torch.nn.functional as F

from common.mistakes import Mistake
from model.kernels import block_attention, flash, torch_varlen
from model.kernels.bias import Alibi, AttentionBias, RelativeBias
from model.kernels.pattern import AttentionPattern, Document
from model.kernels.scoring import PLAIN, Scoring

__all__ = ["Alibi", "AttentionBias", "AttentionPattern", "RelativeBias", "Scoring", "attend", "resolve_backend"]


def resolve_backend(
    name: str,
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    head_dim: int = 64,
    positions: str = "rope",
    softcap: float | None = None,
) -> str:
    """The backend that `name` (auto, flash, varlen, sdpa or reference) means for tensors and positions of this kind.

    `softcap` is that of the scores. Raises ValueError when flash or varlen is asked for and cannot run.
    """
    facts = torch.device(device), dtype, head_dim, positions
    obstacles = {"flash": _flash_obstacle(*facts), "varlen": _varlen_obstacle(*facts, softcap)}
    if name == "auto":
        return next((fast for fast, obstacle in obstacles.items() if obstacle is None), "sdpa")
    obstacle = obstacles.get(name)
    if obstacle is None:
        return name
    raise Mistake(f"model.attention_backend: {name} cannot run, {obstacle}; or use sdpa, or auto to let it choose")


def _flash_obstacle(device: torch.device, dtype: torch.dtype, head_dim: int, positions: str) -> str | None:
    if positions == "t5_bias":
        return "it takes no learned bias and model.positions is t5_bias"
    obstacle = _kernel_obstacle(device, dtype, head_dim)
    if obstacle is None and not flash.installed():
        return "flash-attn is not installed: see docs/gpu.md"
    return obstacle


def _varlen_obstacle(
    device: torch.device, dtype: torch.dtype, head_dim: int, positions: str, softcap: float | None
) -> str | None:
    if softcap is not None:
        return f"it takes no soft cap and model.attention_softcap is {softcap:g}"
    if positions in ("t5_bias", "alibi"):
        return f"it takes no bias and model.positions is {positions}"
    obstacle = _kernel_obstacle(device, dtype, head_dim)
    if obstacle is None and not torch_varlen.installed():
        return "this build of torch comes without its kernel"
    if obstacle is None and head_dim % torch_varlen.HEAD_DIM_MULTIPLE:
        return f"it takes heads of a multiple of {torch_varlen.HEAD_DIM_MULTIPLE} and model.head_dim is {head_dim}"
    return obstacle


def _kernel_obstacle(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """What keeps flash-attn's kernel, whoever built it, from running."""
    if device.type != "cuda":
        return f"it needs a CUDA device and this is {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it needs training.precision bf16 and this is {dtype}"
    if head_dim > flash.MAX_HEAD_DIM:
        return f"it takes heads up to {flash.MAX_HEAD_DIM} wide and model.head_dim is {head_dim}"
    capability = torch.cuda.get_device_capability(device) if torch.cuda.is_available() else flash.LEAST_CAPABILITY
    if capability < flash.LEAST_CAPABILITY:
        least, found = (".".join(map(str, version)) for version in (flash.LEAST_CAPABILITY, capability))
        return f"it needs a GPU of compute capability {least} or more and this has {found}"
    return None


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pattern: AttentionPattern,
    backend: str = "sdpa",
    bias: AttentionBias | None = None,
    scoring: Scoring = PLAIN,
) -> torch.Tensor:
    """Scaled dot-product attention within the documents of a pack, or from one pack to the paired documents of another.

    q [Tq, H, D], k and v [Tk, G, D] with H a multiple of G (query head h reads key head h // (H/G)),
    the same dtype -> [Tq, H, D]; 0 where a query sees no key. `bias` is added to the scores, which `scoring` has
    scaled and capped before. `backend` is what `resolve_backend` gave.
    """
    assert q.shape[0] == pattern.num_queries, "as many queries as in the pattern"
    assert k.shape[0] == v.shape[0] == pattern.num_keys, "as many keys as in the pattern"
    if pattern.num_pairs == 0:
        return torch.zeros_like(q) + (q[:0].sum() + k[:0].sum() + v[:0].sum())  # nothing, but with gradients
    if backend == "sdpa":
        return _sdpa(q, k, v, pattern, bias, scoring)
    if backend == "flash":
        return flash.flash_attention(q, k, v, pattern, bias, scoring)
    if backend == "varlen":
        assert bias is None, "resolve_backend refuses varlen where there is a bias"
        assert scoring.softcap is None, "resolve_backend refuses varlen where scores are capped"
        return torch_varlen.varlen_attention(q, k, v, pattern, scoring.scale)
    assert backend == "reference", f"unknown attention backend {backend}"
    return _reference(q, k, v, pattern, bias, scoring)


def _reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pattern: AttentionPattern,
    bias: AttentionBias | None,
    scoring: Scoring,
) -> torch.Tensor:
    heads_per_group = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(heads_per_group, dim=1) for x in (k, v))
    scores = scoring.scores(torch.einsum("qhd,khd->hqk", q.double(), k), q.shape[2])
    if bias is not None:
        scores = scores + bias.values(pattern.dense_distances()).double()
    hidden = ~pattern.dense_mask()
    # A row without keys is all NaN after softmax; both fills keep that out of values and gradients.
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden, 0.0)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)


def _sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pattern: AttentionPattern,
    bias: AttentionBias | None,
    scoring: Scoring,
) -> torch.Tensor:
    """Neighbouring documents of the same size and prefix are the rows of one call."""
    runs = [(document, len(list(same))) for document, same in groupby(pattern.documents)]
    query_parts = q.split([document.num_queries * rows for document, rows in runs])
    key_parts, value_parts = (x.split([document.num_keys * rows for document, rows in runs]) for x in (k, v))
    outputs = [
        _sdpa_run(*tensors, *run, bias, scoring)
        for tensors, run in zip(zip(query_parts, key_parts, value_parts, strict=True), runs, strict=True)
        if run[0].num_queries
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _sdpa_run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    document: Document,
    rows: int,
    bias: AttentionBias | None,
    scoring: Scoring,
) -> torch.Tensor:
    if document.num_keys == 0:
        return torch.zeros_like(q)
    on_cpu = q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64)
    # torch's kernels have no soft cap, ours has it on any device
    if scoring.softcap is not None or (on_cpu and _gains_by_blocks(document, bias)):
        return block_attention.attention(q, k, v, document, bias, scoring)
    mask, is_causal = None, False
    if bias is not None:
        mask = _bias_matrix(document, bias, q.dtype, q.device)
    elif document.window is not None or not document.is_bidirectional:
        # torch aligns it at the top left
        is_causal = document.is_causal and document.first_place == 0 and document.window is None
        mask = None if is_causal else _mask(document, q.device)
    q = q.unflatten(0, (rows, document.num_queries)).transpose(1, 2)
    k, v = (x.unflatten(0, (rows, document.num_keys)).transpose(1, 2) for x in (k, v))
    gqa = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, scale=scoring.scale, enable_gqa=gqa
    )
    return out.transpose(1, 2).flatten(0, 1)


def _gains_by_blocks(document: Document, bias: AttentionBias | None) -> bool:
    """Whether our kernel is faster than torch's, which is best where it may do all pairs at once."""
    if bias is not None:
        return True
    return document.num_keys >= block_attention.MIN_LENGTH and (
        document.window is not None or not document.is_bidirectional
    )


def _mask(document: Document, device: torch.device) -> torch.Tensor:
    """Bool [num_queries, num_keys], true where the query may see the key."""
    place = torch.arange(document.num_keys, device=device)
    own = place[document.first_place :, None]
    sees = (place <= own) | (place < document.prefix)
    if document.window is None:
        return sees
    after = torch.where(own < document.prefix, document.around, 0)
    before = torch.where(own < document.prefix, document.around, document.before)
    return sees & (place <= own + after) & (place >= own - before)


def _bias_matrix(document: Document, bias: AttentionBias, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[H, num_queries, num_keys]: the bias, and -inf where the query may not see the key."""
    query = torch.arange(document.num_queries, device=device) + document.first_place
    values = bias.values(torch.arange(document.num_keys, device=device) - query[:, None]).to(dtype)
    if document.window is None and document.is_bidirectional:
        return values
    return values.masked_fill(~_mask(document, device), -torch.inf)
