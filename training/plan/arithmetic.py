"""Arithmetic of a micro-batch: what the model needs (`model.flops`), and what is computed a second time.

Documents are all of one length and fill their rows, so the pairs that attention allows are known exactly.
"""

from model.config import ModelConfig
from model.flops import Work, train_flops
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
    )


def recomputed_layers(model: ModelConfig, layers: int) -> int:
    """Blocks of a stack that are computed again, or whose attention is."""
    how = {"none": 0, "attention": layers, "full": -(-layers // model.activation_checkpointing_interval)}
    return how[model.activation_checkpointing]


def recomputed_flops(model: ModelConfig, work: Work) -> int:
    """Floating-point operations that the backward pass does to have again what was not kept: one forward pass of it."""
    changes = {"num_layers": recomputed_layers(model, model.num_layers)}
    if model.shape == "encdec":
        changes["num_encoder_layers"] = recomputed_layers(model, model.encoder_layers)
    if model.activation_checkpointing == "none":
        return 0
    if model.activation_checkpointing == "attention":
        changes["d_ff"] = 0
    return train_flops(model.model_copy(update=changes), 0, work) // 3


def attention_flops(model: ModelConfig, work: Work) -> int:
    """Of scores and weighted values alone, and of those that are computed again."""
    pairs = Work(0, work.num_pairs, 0, work.num_encoder_pairs, work.num_cross_pairs)
    return train_flops(model, 0, pairs) + recomputed_flops(model, pairs)
