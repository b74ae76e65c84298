"""Random documents for every shape, and what a model takes for a pack of them."""

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

from model.config import ModelConfig
from model.kernels.attention import AttentionPattern
from model.network.transformer import EncoderInput, Transformer

VOCAB = 23
SHAPES = ("causal", "prefix", "encoder", "encdec")
POSITIONS = ("rope", "t5_bias", "learned", "alibi", "none")


class Document(NamedTuple):
    """One document as a shape lays it out."""

    tokens: torch.Tensor
    prefix: int = 0
    encoder_tokens: torch.Tensor | None = None
    labels: torch.Tensor | None = None


def tiny_model(shape: str, dtype: torch.dtype = torch.float64, **keys: Any) -> Transformer:
    """A model of two layers whose weights are large enough for every path to count; norms and biases are random."""
    sizes = {"num_layers": 2, "d_model": 16, "num_heads": 4, "num_kv_heads": 2, "d_ff": 20, "init_std": 0.3}
    if keys.get("positions") == "learned":
        keys["max_positions"] = 16
    model = Transformer(ModelConfig(**{**sizes, "shape": shape, **keys}), VOCAB).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data.add_(torch.rand(weight.shape, generator=generator, dtype=dtype) - 0.5)
    return model


def _random_tokens(length: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(VOCAB, (length,), generator=generator)


def make_document(shape: str, length: int, prefix: int, encoder_length: int, generator: torch.Generator) -> Document:
    """prefix counts for shape prefix alone, encoder_length for encdec alone; three labels of four are targets."""
    tokens, labels = _random_tokens(length, generator), _random_tokens(length, generator)
    labels[torch.rand(length, generator=generator) < 0.25] = -100
    prefix = {"prefix": prefix, "encoder": length}.get(shape, 0)
    encoder = _random_tokens(encoder_length, generator) if shape == "encdec" else None
    return Document(tokens, prefix, encoder, labels)


@st.composite
def packs(draw, shape: str, max_documents: int = 4, max_length: int = 9) -> list[Document]:
    """Documents, some of them empty in one stream, but at least one token in each stream."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sizes = st.tuples(st.integers(0, max_length), st.floats(0, 1), st.integers(0, max_length))
    drawn = draw(st.lists(sizes, min_size=1, max_size=max_documents).filter(lambda s: any(x[0] and x[2] for x in s)))
    return [make_document(shape, n, round(share * n), m, generator) for n, share, m in drawn]


def _borders(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def _places(lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(n) for n in lengths])


def encoder_input(documents: list[Document]) -> EncoderInput | None:
    """The encoder's stream of a pack."""
    streams = [document.encoder_tokens for document in documents if document.encoder_tokens is not None]
    if not streams:
        return None
    lengths = [len(stream) for stream in streams]
    borders = _borders(lengths)
    pattern = AttentionPattern.packed(borders, borders.diff())
    cross = AttentionPattern.cross(_borders([len(document.tokens) for document in documents]), borders)
    return EncoderInput(torch.cat(streams), _places(lengths), pattern, cross)


def inputs_of(documents: list[Document]) -> dict[str, Any]:
    """Arguments of a model for a pack of documents, labels left out."""
    lengths = [len(document.tokens) for document in documents]
    prefixes = torch.tensor([document.prefix for document in documents], dtype=torch.int32)
    return {
        "tokens": torch.cat([document.tokens for document in documents]),
        "positions": _places(lengths),
        "pattern": AttentionPattern.packed(_borders(lengths), prefixes),
        "encoder": encoder_input(documents),
    }


def labels_of(documents: list[Document]) -> torch.Tensor:
    """Labels of a pack."""
    return torch.cat([document.labels for document in documents if document.labels is not None])
