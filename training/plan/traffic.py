"""Bytes that pass through a GPU's own memory: norms, activations, loss, AdamW, and what products read and write.

Each operation is one pass that reads its inputs and writes its outputs once, as fused kernels do. In elements of a
token (M width, H D heads, G D keys and values, F inner width):

    forward     a norm 2 M, a residual M, rotations 2 (H + 2 G) D, a gated activation 3 F, another 2 F
    backward    a norm 3 M, a residual 3 M, rotations the same, a gated activation 5 F, another 3 F
    a product   its inputs and outputs forward, twice that backward: less beside its arithmetic the wider a model is
    a logit     24 bytes: to fp32 6, its maximum 4, softmax 8, back to the model's numbers 6
    a weight    10 bytes a micro-batch, its gradient added to the sum; 34 a step, the norm and AdamW
"""

from model.config import ModelConfig
from training.config import ParallelConfig
from training.plan.activations import FP32, Rows
from training.plan.arithmetic import recomputed_layers

ADAM = 34
"""Of a weight: master weight and moments read and written, its gradient read twice, the weight written."""
SUMMED = 2 * FP32
"""Of a weight whose gradient is added to the sum, and the gradient itself."""
PER_LOGIT = 24
CAPPED = 60
"""Of a logit that is bent: scaled, its tanh, the slope from it, scaled back, and the gradient times the slope."""
TRANSFORMED = 16
"""Elements of a width of the states that are mapped before the output projection: product, activation, norm."""


def of_micro_batch(
    model: ModelConfig, vocab_size: int, parallel: ParallelConfig, rows: Rows, weights: int, width: int
) -> float:
    """Bytes of a forward and backward pass of one GPU that holds `weights` weights, numbers having `width` bytes."""
    tokens, read = rows.tokens // parallel.context, rows.encoder_tokens // parallel.context
    total = 0.0
    decoder = model.num_layers + model.multi_token_depths
    for layers, length, crosses in ((decoder, tokens, bool(read)), (model.encoder_layers, read, False)):
        forward, backward = _passes(model, parallel, crosses)
        total += length * width * (layers * (forward + backward) + recomputed_layers(model, layers) * forward)
        total -= length * width * (not model.first_attention_norm) * _norm(model, parallel)
    predictions = (1 + model.multi_token_depths) * tokens
    logits = predictions * vocab_size // parallel.tensor * _per_logit(model)
    total += predictions * model.head_transform * TRANSFORMED * model.d_model * width
    return total + logits + weights * (SUMMED + width)


def _per_logit(model: ModelConfig) -> int:
    """Bytes of a logit, forward and backward."""
    shaped = CAPPED if model.logit_softcap is not None else 16 * (model.logit_scale != 1)
    return PER_LOGIT + shaped + 12 * model.head_bias


def of_step(weights: float) -> float:
    """Bytes of the optimizer's step over a GPU's part of the weights."""
    return weights * ADAM


def _norm(model: ModelConfig, parallel: ParallelConfig) -> float:
    """Elements of a token that a norm of a block reads and writes, all told."""
    again = 0 if model.activation_checkpointing == "none" else 2
    return (2 + 3 + again) * model.d_model / (parallel.tensor if parallel.cuts_rows else 1)


def _passes(model: ModelConfig, parallel: ParallelConfig, crosses: bool) -> tuple[float, float]:
    """Elements of a token that a block reads and writes, forward and backward."""
    row_parts = parallel.tensor if parallel.cuts_rows else 1
    residuals = 3 if crosses else 2
    norms = model.num_norms(residuals)
    query, keys = (heads * model.head_size / parallel.tensor for heads in (model.num_heads, 2 * model.kv_heads))
    rotated = 2 * (query + keys) if model.positions == "rope" else 0.0
    inner, gated = model.d_ff / parallel.tensor, model.is_gated
    products = 4 * model.d_model + 2 * query + keys + (3 if gated else 2) * inner
    products += 3 * model.d_model + 2 * query + keys if crosses else 0
    forward = (2 * norms + residuals) * model.d_model / row_parts + rotated + (3 if gated else 2) * inner
    backward = 3 * (norms + residuals) * model.d_model / row_parts + rotated + (5 if gated else 3) * inner
    return forward + products, backward + 2 * products
