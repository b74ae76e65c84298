"""Random packs of documents for the tests of the model."""

from itertools import accumulate

import torch
from hypothesis import strategies as st

from model.kernels.attention import Alibi, AttentionBias, AttentionPattern, RelativeBias
from model.kernels.bias import alibi_slopes
from model.kernels.scoring import PLAIN, Scoring

HEADS = st.sampled_from([(4, 4), (4, 2), (3, 1)])
BIASES = st.sampled_from([None, "alibi", "one direction", "two directions"])
SCORINGS = st.sampled_from([PLAIN, Scoring(softcap=1.5), Scoring(0.9, 0.7), Scoring(0.2)])
SEEDS = st.integers(0, 2**31)


@st.composite
def documents(draw, max_documents: int = 5, max_length: int = 12) -> tuple[list[int], list[int]]:
    """Lengths (empty documents too, but not all) and prefix lengths: none, whole or anything between."""
    lengths = draw(st.lists(st.integers(0, max_length), min_size=1, max_size=max_documents).filter(any))
    kind = draw(st.sampled_from(["causal", "whole", "mixed"]))
    if kind == "causal":
        return lengths, [0] * len(lengths)
    if kind == "whole":
        return lengths, list(lengths)
    return lengths, [draw(st.integers(0, n)) for n in lengths]


@st.composite
def crossings(draw, max_documents: int = 5, max_length: int = 12) -> tuple[list[int], list[int]]:
    """Numbers of queries and of keys of paired documents; either may be 0."""
    sizes = st.tuples(st.integers(0, max_length), st.integers(0, max_length))
    pairs = draw(st.lists(sizes, min_size=1, max_size=max_documents))
    return [queries for queries, _ in pairs], [keys for _, keys in pairs]


@st.composite
def patterns(draw, max_documents: int = 5, max_length: int = 12, windows: bool = True) -> AttentionPattern:
    """A pack that attends to itself, every second time with a window unless told, or to another."""
    if draw(st.integers(0, 2)) == 0:
        return crossing_of(*draw(crossings(max_documents, max_length)))
    pattern = pattern_of(*draw(documents(max_documents, max_length)))
    return pattern.within(draw(st.none() | st.integers(1, max_length)) if windows else None)


def borders_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def pattern_of(lengths: list[int], prefixes: list[int]) -> AttentionPattern:
    return AttentionPattern.packed(borders_of(lengths), torch.tensor(prefixes, dtype=torch.int32))


def crossing_of(num_queries: list[int], num_keys: list[int]) -> AttentionPattern:
    return AttentionPattern.cross(borders_of(num_queries), borders_of(num_keys))


def positions_of(lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(n) for n in lengths])


def bias_of(kind: str | None, num_heads: int, dtype: torch.dtype = torch.float64) -> AttentionBias | None:
    """A bias; learned ones, of distances up to 20, have a leaf of the graph as weight."""
    if kind is None:
        return None
    if kind == "alibi":
        return Alibi(alibi_slopes(num_heads))
    weight = torch.randn(8, num_heads, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return RelativeBias(weight.requires_grad_(), kind == "two directions", max_distance=20)


def random_qkv(
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    seed: int = 0,
    num_keys: int | None = None,
) -> list[torch.Tensor]:
    """q, k, v that are leaves of the graph, and a gradient for the output; as many keys as queries unless told."""
    generator = torch.Generator().manual_seed(seed)
    keys = num_tokens if num_keys is None else num_keys
    sizes = (num_tokens, num_heads), (keys, num_kv_heads), (keys, num_kv_heads), (num_tokens, num_heads)
    tensors = [torch.randn(*size, head_dim, dtype=dtype, generator=generator) for size in sizes]
    return [x.requires_grad_() for x in tensors[:3]] + tensors[3:]


def qkv_for(pattern: AttentionPattern, heads: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """What `random_qkv` gives, for this pattern, with heads of 8."""
    return random_qkv(pattern.num_queries, *heads, 8, dtype, seed, pattern.num_keys)


def places_of(pattern: AttentionPattern, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bool [Tq] and [Tk]: the queries and the keys of one document of a pack."""
    sides = []
    for borders in (pattern.cu_seqlens_q, pattern.cu_seqlens_k):
        place = torch.arange(int(borders[-1]))
        sides.append((place >= borders[number]) & (place < borders[number + 1]))
    return sides[0], sides[1]
