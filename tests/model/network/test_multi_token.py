"""Further depths against a reference of plain tensors and megatron-core's layers, and what none of them may know."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from megatron.core.transformer import multi_token_prediction as megatron
from torch import nn

from model.config import MULTI_TOKEN_WEIGHT, ModelConfig
from model.network.multi_token import places_on
from model.network.transformer import Transformer
from tests.model.packs import pattern_of, positions_of
from tests.model.streams import VOCAB, inputs_of, make_document, tiny_model

LENGTHS, PREFIXES = [7, 1, 12, 3], [0, 1, 5, 3]
DEPTHS = 2
VARIANTS = {
    "causal": {},
    "causal, tied, today": {"tie_embeddings": True, "attention_gate": True, "sliding_window": 3, "qk_norm": True},
    "prefix": {"shape": "prefix", "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "prefix, layernorm": {"shape": "prefix", "positions": "alibi", "norm": "layernorm", "bias": True},
    "encdec": {"shape": "encdec", "positions": "t5_bias"},
}


def pack_of(shape: str, seed: int = 0) -> dict:
    """A pack with next tokens as labels, but for those in a prefix."""
    generator = torch.Generator().manual_seed(seed)
    prefixes = PREFIXES if shape == "prefix" else [0] * len(LENGTHS)
    documents = [make_document(shape, n, p, 4, generator) for n, p in zip(LENGTHS, prefixes, strict=True)]
    inputs = inputs_of(documents)
    labels = inputs["tokens"].roll(-1)
    inside = inputs["positions"].roll(-1) == inputs["positions"] + 1
    prefix = torch.tensor(prefixes).repeat_interleave(torch.tensor(LENGTHS))
    labels[~inside | (inputs["positions"] < prefix - 1)] = -100
    return inputs | {"labels": labels}


def reference(model: Transformer, inputs: dict, weight: float) -> torch.Tensor:
    """Section 2.2 of the paper, document by document: each is cut off where the token k places on is."""
    states: list[torch.Tensor] = []
    model.norm.register_forward_hook(lambda module, args, out: states.append(out.detach()))
    tokens, labels, pattern = inputs["tokens"], inputs["labels"], inputs["pattern"]
    loss = F.cross_entropy(
        model(tokens, inputs["positions"], pattern, encoder=inputs["encoder"]), labels, reduction="sum"
    )
    embedding, head = model.embedding.weight, model.head.weight
    borders = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    for number, document in enumerate(pattern.documents):
        own = slice(borders[number], borders[number + 1])
        (text, asked), before = (x[own] for x in (tokens, labels)), states[-1][own]
        for depth, module in enumerate(model.multi_token, 1):
            kept = len(text) - depth
            if kept < 1:
                continue
            told = embedding[text[depth:]]
            x = torch.cat((module.embedding_norm(told), module.state_norm(before[:kept])), 1) @ module.merge.weight.T
            prefix = max(document.prefix - depth, 0)
            around = model._surroundings(x, torch.arange(kept), pattern_of([kept], [prefix]), None)
            before = module.norm(module.block(x, around))
            loss = loss + weight / DEPTHS * F.cross_entropy(before @ head.T, asked[depth:], reduction="sum")
    return loss


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "encdec"])
def test_losses_of_further_depths_are_those_of_the_paper(variant):
    keys = {"shape": "causal"} | VARIANTS[variant]
    model, inputs = tiny_model(**keys, multi_token_depths=DEPTHS), pack_of(keys["shape"])
    out = model(**inputs)
    plain = model(**inputs, further_weight=0.0).loss_sum
    with torch.no_grad():
        expected = reference(model, inputs, MULTI_TOKEN_WEIGHT)
    torch.testing.assert_close(out.loss_sum, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(plain, out.cross_entropy_sum, rtol=1e-10, atol=0)
    torch.testing.assert_close(out.loss_sum - plain, MULTI_TOKEN_WEIGHT * out.further_sums.mean(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prediction_knows_no_token_beyond_the_one_before_it(variant):
    """Each target of each depth by itself: which tokens does its loss depend on?"""
    keys = {"shape": "causal"} | VARIANTS[variant]
    model, inputs = tiny_model(**keys, multi_token_depths=DEPTHS), pack_of(keys["shape"])
    tokens, labels, positions = inputs["tokens"], inputs["labels"], inputs["positions"]
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    for place in (12, 17):
        alone = torch.where(torch.arange(len(tokens)) == place, labels, -100)
        losses = model(**inputs | {"labels": alone}).further_sums
        for changed in (0, 7, *range(place, len(tokens))):
            others = tokens.clone()
            others[changed] = (others[changed] + 1) % VOCAB
            moved = model(**inputs | {"labels": alone, "tokens": others}).further_sums != losses
            known = document[changed] == document[place] and changed <= place
            assert known or not moved.any(), f"the label at {place} knows the token at {changed}"
            if changed == place and positions[place] >= DEPTHS:
                assert moved.all(), "each depth is told the token right before its target"


def test_nothing_is_asked_across_the_border_of_a_document():
    tokens, labels = torch.arange(10), torch.arange(1, 11)
    positions = positions_of([4, 1, 5])
    for depth, expected in ((1, [2, 3, 4, -100, -100, 7, 8, 9, 10, -100]), (4, [-100] * 5 + [10] + [-100] * 4)):
        told, asked = places_on(tokens, labels, positions, depth)
        assert asked.tolist() == expected
        assert all(told[i] == i + depth for i in range(10) if asked[i] != -100)


def test_the_first_weights_and_the_logits_are_those_without_further_depths():
    keys = {"num_layers": 2, "d_model": 16, "num_heads": 4, "d_ff": 20}
    with_depths, without = (Transformer(ModelConfig(**keys, multi_token_depths=n), VOCAB, 3) for n in (1, 0))
    for name, weight in without.named_parameters():
        assert torch.equal(weight, with_depths.get_parameter(name))
    inputs = inputs_of([make_document("causal", 8, 0, 0, torch.Generator())])
    assert torch.equal(with_depths(**inputs), without(**inputs))
    assert with_depths(**inputs, labels=inputs["tokens"]).cross_entropy_sum == (
        without(**inputs, labels=inputs["tokens"]).cross_entropy_sum
    )


def test_prefixes_are_shorter_for_what_reads_ahead():
    pattern = pattern_of([9, 4, 6], [5, 0, 6])
    ahead = pattern.ahead(2)
    assert [document.prefix for document in ahead.documents] == [3, 0, 4]
    assert pattern.ahead(2) is ahead and pattern_of([9], [0]).ahead(3).is_causal
    moved = pattern.prepare().to("meta")
    assert moved.ahead(2).documents == ahead.documents and moved.ahead(2).__dict__["num_pairs"] == ahead.num_pairs
    assert moved.ahead(2).split.square_queries.device.type == "meta"


class Gives(nn.Module):
    """A function as a layer of megatron-core's, which gives a bias beside its output."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor | None = None, hidden_states: torch.Tensor | None = None, **_: Any) -> tuple:
        given = x if x is not None else hidden_states
        assert given is not None
        return self.function(given), None


def test_losses_of_further_depths_are_those_of_megatron_cores_layers_around_our_blocks(monkeypatch):
    """What is moved where, merged, normed and handed on is theirs; norms, matrices and blocks are ours."""
    monkeypatch.setattr(megatron, "gather_from_tensor_model_parallel_region", lambda x: x)
    model, inputs = tiny_model("causal", multi_token_depths=DEPTHS, tie_embeddings=True), pack_of("causal")
    packed = SimpleNamespace(cu_seqlens_q=inputs["pattern"].cu_seqlens_q)
    found: list[torch.Tensor] = []

    def embedding(input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return model.embedding(input_ids)

    model.norm.register_forward_hook(lambda module, args, out: found.append(out))
    with torch.no_grad():
        ours = model(**inputs).further_sums
        states, ids, places, labels = found[0], inputs["tokens"], inputs["positions"], inputs["labels"]
        is_target, labels = labels != -100, labels.clamp(min=0)
        around = model._surroundings(states, inputs["positions"], inputs["pattern"], None)
        for depth, module in enumerate(model.multi_token):
            layer = megatron.MultiTokenPredictionLayer.__new__(megatron.MultiTokenPredictionLayer)
            nn.Module.__init__(layer)
            layer.config, layer.cp_group = SimpleNamespace(sequence_parallel=False, fp8=None), None
            layer.sequence_parallel = False
            layer.enorm, layer.hnorm, layer.final_layernorm = module.embedding_norm, module.state_norm, module.norm
            layer.eh_proj, layer.transformer_layer = Gives(module.merge), Gives(partial(module.block, around=around))
            ids, places, told, states = layer._get_embeddings(ids, places, embedding, states, packed)
            states = layer._proj_and_transformer_layer(states, told)
            labels, is_target = (megatron.roll_tensor(x, packed_seq_params=packed)[0] for x in (labels, is_target))
            losses = F.cross_entropy(states @ model.head.weight.T, labels, reduction="none")
            torch.testing.assert_close(ours[depth], losses[is_target].sum(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_computes_no_further_depths_and_the_same_loss_of_the_next_token(variant):
    model = tiny_model(**{"shape": "causal", "multi_token_depths": DEPTHS, **VARIANTS[variant]})
    inputs = pack_of(model.config.shape)
    trained = model(**inputs).cross_entropy_sum
    for module in model.multi_token:
        module.register_forward_pre_hook(lambda *_: pytest.fail("a further depth was computed"))
    evaluated = model.eval()(**inputs)
    assert evaluated.further_sums is None
    assert torch.equal(evaluated.cross_entropy_sum, trained)
