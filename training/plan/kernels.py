"""What kernels of a device keep for the backward pass, and what they need while they run, where devices differ.

GPU    flash-attn keeps queries, keys, values, what it gives and a logarithm of each row; norms keep their input, in
       fp32 those whose weights are kept less 1
CPU    our attention keeps them in its own order, beside those that torch's kernel keeps of short documents, and
       what documents of different kinds give is joined anew; RMSNorm in bf16 keeps its input twice in fp32
both   our attention is the only one where scores have a soft cap and flash-attn cannot run; it computes in fp32
"""

from typing import NamedTuple

from model.config import ModelConfig
from model.kernels.block_attention import BLOCK, MIN_LENGTH
from model.network.loss import CHUNK_ELEMENTS, ENOUGH_TARGETS

FP32 = 4
"""Bytes."""


class Kernels(NamedTuple):
    """Of one device, for documents of one length."""

    normed: int
    """Bytes of an element of a norm's input."""
    queries: int
    """How often attention keeps queries, keys and values where not all queries see all keys; else once."""
    squares: int
    """The same where they do."""
    attended: int
    """How often what attention gives."""
    bias_rows: int
    """Rows of the matrix [rows, keys] that a bias of scores is kept as, for each head and layer."""
    bias_width: int
    """Bytes of an element of it."""
    chunk: int
    """Logits alive at once."""
    added: int
    """Bytes of an element of a product that is added to what is there: CPUs sum what is in bf16 in fp32, beside it."""
    enough_targets: float
    """Share of positions that are targets from which on all go through the output projection."""


def kernels(model: ModelConfig, width: int, document: int, on_gpu: bool) -> Kernels:
    """What a device keeps of a model that computes with numbers of `width` bytes."""
    as_is = FP32 if model.norm == "rmsnorm_1p" else width
    found = _on_gpu(model, as_is, width, document) if on_gpu else _on_cpu(model, as_is, width, document)
    on_flash = on_gpu and width < FP32 and model.positions != "t5_bias" and model.attention_backend in ("auto", "flash")
    if model.attention_softcap is None or on_flash:
        return found
    wide = max(FP32 // width, 1)
    rows = min(BLOCK, document) if found.bias_rows or model.positions == "alibi" else 0
    return found._replace(queries=wide, squares=wide, attended=1 + wide, bias_rows=rows, bias_width=max(width, FP32))


def _on_gpu(model: ModelConfig, normed: int, width: int, document: int) -> Kernels:
    rows = document if model.positions == "t5_bias" else 0
    return Kernels(normed, 1, 1, 1, rows, width, CHUNK_ELEMENTS[True], 0, 0.0)


def _on_cpu(model: ModelConfig, normed: int, width: int, document: int) -> Kernels:
    # with a bias every document is our kernel's, without one the long ones are
    biased = model.positions in ("t5_bias", "alibi")
    rows = (min(BLOCK, document) if width >= FP32 else document) if biased else 0
    own = width >= FP32 and document >= MIN_LENGTH
    normed = 2 * FP32 if model.norm == "rmsnorm" and width < FP32 else normed
    added, queries = FP32 if width < FP32 else 0, 2 if own and not biased else 1
    return Kernels(normed, queries, 1, 2, rows, width, CHUNK_ELEMENTS[False], added, ENOUGH_TARGETS)
