"""First values: the same numbers whole or in parts, and none at all on the meta device."""

import pytest
import torch

from model.config import ModelConfig
from model.network import layers
from model.network.layers import Constant, Draw, Embedding, Initializer, first_values
from model.network.transformer import Transformer

SIZES = {"num_layers": 2, "d_model": 32, "num_heads": 4, "num_kv_heads": 2, "d_ff": 64}
SHAPES = [
    {"shape": "causal", "qk_norm": True, "qkv_bias": True},
    {"shape": "prefix", "positions": "learned", "max_positions": 32, "norm": "layernorm", "bias": True},
    {"shape": "encoder", "positions": "alibi", "tie_embeddings": True, "attention_output_bias": True},
    {"shape": "encdec", "positions": "t5_bias", "num_encoder_layers": 1, "tie_embeddings": True},
]


@pytest.mark.parametrize("numel", [1, 5, 15, 16, 17, 63, 64, 65, 79, 80, 81, 143, 1000])
def test_blocks_give_what_torch_draws_in_one_go(numel, monkeypatch):
    monkeypatch.setattr(layers, "BLOCK", 64)
    draw = Draw((numel,), 0.02, seed=3, name="blocks.0.attention.qkv")
    values = torch.empty(numel)
    draw.fill(values)
    monkeypatch.setattr(layers, "BLOCK", 1 << 20)
    whole = torch.empty(numel)
    draw.fill(whole)
    assert torch.equal(values, whole)


@pytest.mark.parametrize("start", [0, 1, 63, 64, 500, 999])
def test_a_part_holds_the_same_numbers_as_the_whole(start, monkeypatch):
    monkeypatch.setattr(layers, "BLOCK", 64)
    draw = Draw((10, 100), 0.02, seed=3, name="head")
    whole = torch.empty(1000)
    draw.fill(whole)
    for stop in (start + 1, min(start + 70, 1000), 1000):
        part = torch.empty(stop - start)
        draw.fill(part, start)
        assert torch.equal(part, whole[start:stop])


def test_a_draw_depends_on_seed_and_name_alone():
    values = [Embedding(3, 5, 0.02, Initializer(seed) / name).weight for seed, name in ((1, "a"), (1, "b"), (2, "a"))]
    assert not torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    assert torch.equal(values[0], Embedding(3, 5, 0.02, Initializer(1) / "a").weight)


@pytest.mark.parametrize("keys", SHAPES, ids=lambda keys: keys["shape"])
def test_a_model_on_the_meta_device_draws_nothing_and_knows_all_of_its_first_values(keys, monkeypatch):
    config = ModelConfig(**SIZES, **keys)
    plain = dict(Transformer(config, 50, seed=7).named_parameters())
    with monkeypatch.context() as patch, torch.device("meta"):
        patch.delattr(Draw, "fill")
        patch.delattr(Constant, "fill")
        found = first_values(Transformer(config, 50, seed=7))
    assert list(found) == list(plain)
    for name, first in found.items():
        values = torch.empty(first.shape)
        first.fill(values.view(-1))
        assert torch.equal(values, plain[name]), name
