"""FLOPs of the plan against torch's own counter, with what masks leave out taken off."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.flops import Work, train_flops
from model.kernels.attention import AttentionPattern
from model.network.layers import hidden_matrices
from model.network.transformer import EncoderInput, Transformer
from tests.model.packs import crossing_of, pattern_of, positions_of
from training.muon import orthogonalized
from training.plan.activations import Rows
from training.plan.arithmetic import muon_flops, recomputed_flops, work_of

VOCAB = 50
LENGTHS, READ = [7, 12, 5], [9, 4, 11]
SIZES = {"num_layers": 2, "d_model": 16, "num_heads": 4, "num_kv_heads": 2, "d_ff": 24}
SHAPES = {
    "causal": [0, 0, 0],
    "prefix": [3, 12, 0],
    "encoder": LENGTHS,
    "encdec": [0, 0, 0],
}
WAYS = {
    "nothing": {},
    "blocks": {"activation_checkpointing": "full"},
    "every second block": {"activation_checkpointing": "full", "activation_checkpointing_interval": 2},
    "attention": {"activation_checkpointing": "attention"},
}


def added(into: tuple[int, int], a: tuple[int, int], b: tuple[int, int], **_: object) -> int:
    """Operations of `addmm_`, by its shapes."""
    return 2 * a[0] * a[1] * b[1]


def hidden(pattern: AttentionPattern) -> int:
    """Pairs that the dense mask leaves out."""
    return pattern.num_queries * pattern.num_keys - pattern.num_pairs


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_operations_are_those_that_torch_counts_but_for_hidden_pairs(shape, way):
    """The counter knows no product of oneDNN, so float64, and `addmm_` when told; some labels are no targets."""
    encoders = {"num_encoder_layers": 3} if shape == "encdec" else {}
    keys = {"shape": shape, "attention_backend": "reference"} | encoders | WAYS[way]
    config = ModelConfig(**SIZES, **keys)
    model = Transformer(config, VOCAB).double()
    own, read, cross = (pattern_of(LENGTHS, SHAPES[shape]), pattern_of(READ, READ), crossing_of(LENGTHS, READ))
    tokens, other = torch.arange(sum(LENGTHS)), torch.arange(sum(READ))
    labels = tokens.masked_fill(tokens % 3 == 0, -100)
    encoder = EncoderInput(other, positions_of(READ), read, cross) if shape == "encdec" else None
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter:
        model(tokens, positions_of(LENGTHS), own, labels, 1e-4, encoder).loss_sum.backward()
    parts = (len(other), read.num_pairs, cross.num_pairs) if encoder else (0, 0, 0)
    masked = (hidden(own), 0, hidden(read), hidden(cross)) if encoder else (hidden(own), 0, 0, 0)
    work = Work(len(tokens), own.num_pairs, *parts, num_targets=int((labels >= 0).sum()))
    left_out = Work(0, masked[0], 0, masked[2], masked[3])
    expected = train_flops(config, VOCAB, work) + recomputed_flops(config, work)
    expected += train_flops(config, 0, left_out) + recomputed_flops(config, left_out)
    assert counter.get_total_flops() == expected
    assert (recomputed_flops(config, work) > 0) == (way != "nothing")


@pytest.mark.parametrize("shape", ["causal", "encoder", "encdec"])
def test_rows_full_of_documents_are_counted_as_their_patterns(shape):
    config = ModelConfig(**SIZES, shape=shape)
    lengths, read = [6] * 4, [6] * 4
    own = pattern_of(lengths, lengths if shape == "encoder" else [0] * 4)
    found = work_of(config, Rows(24, 24 if shape == "encdec" else 0, 6))
    assert found.num_pairs == own.num_pairs
    if shape == "encdec":
        assert found.num_encoder_pairs == pattern_of(read, read).num_pairs
        assert found.num_cross_pairs == crossing_of(lengths, read).num_pairs


@pytest.mark.parametrize("way", ["every second block", "attention"])
def test_windows_and_further_depths_that_are_computed_again_are_counted(way):
    """All pairs are told as the dense mask has them, whatever a layer lets through."""
    keys = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"], "multi_token_depths": 2}
    config = ModelConfig(**SIZES | {"num_layers": 3}, **keys, attention_backend="reference", **WAYS[way])
    model, pattern = Transformer(config, VOCAB).double(), pattern_of(LENGTHS, [0] * len(LENGTHS))
    tokens = torch.arange(sum(LENGTHS))
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter:
        model(tokens, positions_of(LENGTHS), pattern, tokens, 0.0).loss_sum.backward()
    pairs = len(tokens) ** 2
    targets = sum(model_targets(LENGTHS, depth) for depth in (1, 2))
    work = Work(len(tokens), pairs, num_window_pairs=pairs, num_further_pairs=2 * pairs, num_further_targets=targets)
    assert counter.get_total_flops() == train_flops(config, VOCAB, work) + recomputed_flops(config, work)


def model_targets(lengths: list[int], depth: int) -> int:
    """Positions that go through the output projection at a depth: all, unless many have nothing to be asked for."""
    asked = sum(max(length - depth, 0) for length in lengths)
    return asked if asked < 0.8 * sum(lengths) else sum(lengths)


def test_muons_operations_are_those_that_torch_counts():
    model = ModelConfig(num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, d_ff=40, shape="encdec")
    whole = Transformer(model, 9)
    weights, counted = dict(whole.named_parameters()), []
    for name, division in hidden_matrices(whole).items():
        for matrix in weights[name].detach().split(list(division.sections), division.dim):
            with FlopCounterMode(display=False) as counter:
                orthogonalized(matrix)
            counted.append(counter.get_total_flops())
    assert muon_flops(model) == (sum(counted), max(counted))
