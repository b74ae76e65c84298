"""Arithmetic of a micro-batch: what the model needs (`model.flops`), and what is computed a second time.

Documents are all of one length and fill their rows, so the pairs that attention allows are known exactly.
"""

import functools
from typing import NamedTuple

import torch

from model.config import ModelConfig
from model.flops import Work, train_flops
from model.kernels.pattern import Document
from model.network.layers import hidden_matrices
from model.network.transformer import Transformer
from training.muon import ITERATIONS
from training.plan.activations import Rows


def work_of(model: ModelConfig, rows: Rows) -> Work:
    """Tokens and allowed pairs of rows that documents of `rows.document` tokens fill."""
    length = max(rows.document, 1)
    square, triangle = length, (length + 1) / 2
    own = square if model.shape == "encoder" else triangle
    read = rows.encoder_tokens
    share = read / rows.tokens if rows.tokens else 0
    return Work(
        rows.tokens,
        round(rows.tokens * own),
        read,
        round(read * square * share),
        round(rows.tokens * square * share) if read else 0,
        _window_pairs(model.sliding_window, rows.tokens, length, model.shape == "encoder"),
        _window_pairs(model.sliding_window, read, length * share, True) or 0,
        _further_pairs(model, rows.tokens, length),
    )


def _further_pairs(model: ModelConfig, tokens: int, length: float) -> int | None:
    """Pairs of all further depths; None without any."""
    layers = range(model.num_layers, model.num_layers + model.multi_token_depths)
    windows = [model.sliding_window if model.slides(index) else round(length) for index in layers]
    return sum(_window_pairs(window, tokens, length, False) or 0 for window in windows) if windows else None


def _window_pairs(window: int | None, tokens: int, length: float, is_square: bool) -> int | None:
    """Pairs within a window of documents of `length` tokens that fill `tokens`; None without a window."""
    if window is None:
        return None
    size = max(round(length), 1)
    square = size if is_square else 0
    return round(tokens / size * Document(size, size, square, square).within(window).num_pairs)


def recomputed_layers(model: ModelConfig, layers: int) -> int:
    """Blocks of a stack that are computed again, or whose attention is."""
    how = {"none": 0, "attention": layers, "full": -(-layers // model.activation_checkpointing_interval)}
    return how[model.activation_checkpointing]


def recomputed_depths(model: ModelConfig) -> int:
    """Further depths that are computed again as a whole."""
    return sum(model.recomputes(model.num_layers + depth) for depth in range(model.multi_token_depths))


def recomputed_flops(model: ModelConfig, work: Work) -> int:
    """Floating-point operations that the backward pass does to have again what was not kept: one forward pass of it."""
    if model.activation_checkpointing == "none":
        return 0
    whole, depths = model.activation_checkpointing == "full", model.multi_token_depths
    plain = {"sliding_window": None, "layer_types": None, "multi_token_depths": 0, "head_transform": False}
    changes = plain | {"num_layers": recomputed_layers(model, model.num_layers + depths)}
    if model.shape == "encdec":
        changes["num_encoder_layers"] = recomputed_layers(model, model.encoder_layers)
    if not whole:
        changes["d_ff"] = 0
    tokens = Work(work.num_tokens, 0, work.num_encoder_tokens)
    matmuls = train_flops(model.model_copy(update=changes), 0, tokens) // 3
    matmuls += 4 * model.d_model**2 * work.num_tokens * recomputed_depths(model)
    return matmuls + 4 * model.num_heads * model.head_size * _recomputed_pairs(model, work)


def _recomputed_pairs(model: ModelConfig, work: Work) -> int:
    """Pairs of all layers whose attention is computed again."""
    whole, depths = model.activation_checkpointing == "full", model.multi_token_depths
    pairs = work.num_cross_pairs * recomputed_layers(model, model.num_layers + depths)
    for layers, full, sliding in (
        (model.num_layers, work.num_pairs, work.num_window_pairs or 0),
        (model.encoder_layers, work.num_encoder_pairs, work.num_encoder_window_pairs),
    ):
        again = [index for index in range(layers) if not whole or model.recomputes(index)]
        pairs += sum(sliding if model.slides(index) else full for index in again)
    if depths:
        pairs += round((work.num_further_pairs or 0) * (recomputed_depths(model) if whole else depths) / depths)
    return pairs


def attention_flops(model: ModelConfig, work: Work) -> int:
    """Of scores and weighted values alone, and of those that are computed again."""
    pairs = work._replace(num_tokens=0, num_encoder_tokens=0, num_targets=0, num_further_targets=0)
    return train_flops(model, 0, pairs) + recomputed_flops(model, pairs)


class Orthogonalizing(NamedTuple):
    """Operations of Muon in one step."""

    all: int
    """Of all matrices."""
    largest: int
    """Of the one that takes most: it is done by one rank."""


def muon_flops(model: ModelConfig) -> Orthogonalizing:
    """Of matrices [m, n], m the shorter side: in each iteration X X^T, its square, and their product with X."""
    return _muon_flops(model.model_dump_json())


@functools.lru_cache(maxsize=64)
def _muon_flops(model: str) -> Orthogonalizing:
    with torch.device("meta"):
        whole = Transformer(ModelConfig.model_validate_json(model), 1)
    shapes = {name: weight.shape for name, weight in whole.named_parameters()}
    flops = []
    for name, division in hidden_matrices(whole).items():
        rest = shapes[name].numel() // shapes[name][division.dim]
        for section in division.sections:
            short, long = sorted((section, rest))
            flops.append(ITERATIONS * (4 * short**2 * long + 2 * short**3))
    return Orthogonalizing(sum(flops), max(flops))
