"""Which weights decay."""

import torch
from torch import nn

from model.config import ModelConfig
from model.network.transformer import Transformer
from tests.training.runs import tiny_config
from training.optimizer import build_optimizer, decay_groups

CONFIG = ModelConfig(num_layers=2, d_model=16, num_heads=2, d_ff=32)


def test_matrices_and_embeddings_decay_and_norms_do_not():
    model = Transformer(CONFIG, 50)
    decaying, plain = decay_groups(model.named_parameters(), 0.1)
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert decaying["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0
    assert {names[id(weight)] for weight in plain["params"]} == {name for name in names.values() if "norm" in name}
    assert "embedding.weight" in {names[id(weight)] for weight in decaying["params"]}
    assert len(decaying["params"]) + len(plain["params"]) == len(names)


def test_a_tied_weight_is_updated_once():
    model = Transformer(CONFIG.model_copy(update={"tie_embeddings": True}), 50)
    weights = [id(weight) for group in decay_groups(model.named_parameters(), 0.1) for weight in group["params"]]
    assert len(weights) == len(set(weights)) == len(list(model.parameters()))


def test_biases_do_not_decay_and_frozen_weights_are_left_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    model[0].weight.requires_grad_(False)
    decaying, plain = decay_groups(model.named_parameters(), 0.5)
    assert decaying["params"] == [model[1].weight]
    assert [tuple(bias.shape) for bias in plain["params"]] == [(4,), (5,)]


def test_a_model_of_matrices_alone_has_one_group():
    (group,) = decay_groups(nn.Linear(3, 4, bias=False).named_parameters(), 0.5)
    assert group["weight_decay"] == 0.5


def test_decay_pulls_a_matrix_and_leaves_a_norm_when_there_is_no_gradient():
    model = Transformer(CONFIG, 50)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    run = tiny_config("data", optimizer={"lr": 0.1, "weight_decay": 0.5})
    optimizer = build_optimizer(model, run, torch.device("cpu"))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in model.named_parameters():
        share = 1.0 if weight.ndim == 1 else 1 - 0.1 * 0.5
        torch.testing.assert_close(weight.detach(), before[name] * share, rtol=1e-6, atol=0)
