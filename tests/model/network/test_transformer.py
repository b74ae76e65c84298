import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from model.config import ModelConfig
from model.kernels.attention import AttentionPattern
from model.kernels.ops import rope_tables
from model.network.blocks import Block
from model.network.loss import LossOutput
from model.network.positions import rope_frequencies
from model.network.transformer import Transformer
from tests.model.packs import documents, pattern_of, positions_of
from tests.model.streams import SHAPES, inputs_of, labels_of, make_document, tiny_model

VOCAB = 50


def config(**changes):
    return ModelConfig(**{"num_layers": 2, "d_model": 16, "num_heads": 4, "num_kv_heads": 2, "d_ff": 24, **changes})


def tokens_of(pattern, seed=0):
    return torch.randint(VOCAB, (pattern.num_queries,), generator=torch.Generator().manual_seed(seed))


def gradients(model, *args, **kwargs):
    model.zero_grad()
    out = model(*args, **kwargs)
    out.loss_sum.backward()
    return out.loss_sum, {name: p.grad.clone() for name, p in model.named_parameters()}


@settings(max_examples=15, deadline=None)
@given(documents())
def test_a_pack_gives_each_document_the_logits_it_has_alone(pack):
    model = Transformer(config(), VOCAB)
    lengths, prefixes = pack
    tokens = tokens_of(pattern_of(*pack))
    with torch.no_grad():
        packed = model(tokens, positions_of(lengths), pattern_of(*pack))
        start = 0
        for n, p in zip(lengths, prefixes, strict=True):
            if n:
                alone = model(tokens[start : start + n], torch.arange(n), pattern_of([n], [p]))
                torch.testing.assert_close(packed[start : start + n], alone, atol=1e-5, rtol=1e-5)
            start += n


def test_no_token_changes_the_loss_gradient_of_another_document_or_of_its_past():
    model = Transformer(config(), VOCAB)
    pattern = AttentionPattern.causal([6, 9, 6])
    tokens, positions = tokens_of(pattern), positions_of([6, 9, 6])
    with torch.no_grad():
        before = model(tokens, positions, pattern)
        changed = tokens.clone()
        changed[10] = (changed[10] + 1) % VOCAB
        after = model(changed, positions, pattern)
    touched = (before != after).any(1)
    assert not touched[:10].any() and touched[10:15].all() and not touched[15:].any()


def test_loss_is_that_of_the_logits():
    model = Transformer(config(), VOCAB)
    pattern = AttentionPattern.causal([7, 5])
    tokens, positions = tokens_of(pattern), positions_of([7, 5])
    labels = tokens.roll(-1)
    labels[[6, 11]] = -100
    out = model(tokens, positions, pattern, labels, 0.01)
    logits = model(tokens, positions, pattern)
    expected = F.cross_entropy(logits, labels, reduction="sum")
    z = logits[labels != -100].logsumexp(-1).square().sum()
    assert isinstance(out, LossOutput) and out.num_targets == 10
    torch.testing.assert_close(out.cross_entropy_sum, expected)
    torch.testing.assert_close(out.loss_sum, expected + 0.01 * z)
    assert out.loss_sum.requires_grad and not out.cross_entropy_sum.requires_grad


VARIANTS = {
    "causal": {},
    "tied": {"tie_embeddings": True},
    "prefix": {"shape": "prefix", "positions": "t5_bias", "qk_norm": True},
    "encoder": {"shape": "encoder", "positions": "learned", "norm": "layernorm", "bias": True, "activation": "gelu"},
    "parallel": {"positions": "alibi", "parallel_block": True, "activation": "gelu_tanh", "embedding_norm": True},
    "post": {"norm_placement": "post", "norm": "layernorm", "bias": True, "shape": "encoder"}
    | {"head_transform": True, "head_bias": True, "segment_embeddings": 2},
    "sandwich": {"norm_placement": "sandwich", "shape": "prefix", "multi_token_depths": 1}
    | {"logit_softcap": 3.0, "attention_softcap": 0.5, "embedding_scale": 4.0, "tie_embeddings": True},
    "output": {"norm_placement": "output", "qk_norm": "all_heads", "norm": "rmsnorm_1p", "sliding_window": 3}
    | {"layer_types": ["full_attention", "sliding_attention"], "sliding_rope_theta": 100.0},
    "no first norm": {"shape": "encoder", "embedding_norm": True, "first_attention_norm": False}
    | {"norm": "layernorm", "activation": "geglu_exact", "attention_output_bias": True},
    "half rotated": {"rope_fraction": 0.5, "activation": "relu", "qkv_bias": True},
    "encdec": {"shape": "encdec", "positions": "t5_bias", "activation": "geglu", "norm": "layernorm"},
    "of today": {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"], "attention_gate": True}
    | {"shape": "prefix", "no_rope_layer_interval": 2, "multi_token_depths": 1},
    "encdec, biases of each layer": {"shape": "encdec", "positions": "t5_bias", "t5_bias_per_layer": True}
    | {"multi_token_depths": 1},
    "encdec with rope": {"shape": "encdec", "bias": True, "qk_norm": True, "num_encoder_layers": 1}
    | {"attention_softcap": 0.5, "attention_scale": 0.7},
}


def packs_for(shape, *all_lengths):
    """Arguments of a model, with labels, for packs of documents of these lengths; an encoder reads 3 tokens more."""
    for seed, lengths in enumerate(all_lengths):
        generator = torch.Generator().manual_seed(seed)
        read = [*lengths[:-1], lengths[-1] + 3]
        documents = [make_document(shape, n, n // 2, m, generator) for n, m in zip(lengths, read, strict=True)]
        yield inputs_of(documents) | {"labels": labels_of(documents)}


OTHERS: list[dict] = [
    {"activation_checkpointing": "full", "activation_checkpointing_interval": 2},
    {"activation_checkpointing": "attention"},
]
RECOMPUTED = [
    *((variant, {"activation_checkpointing": True}) for variant in VARIANTS),
    *itertools.product(("causal", "encdec"), OTHERS),
]


@pytest.mark.parametrize(("variant", "recomputed"), RECOMPUTED)
def test_checkpointing_changes_neither_loss_nor_gradients(variant, recomputed):
    keys = VARIANTS[variant]
    (inputs,) = packs_for(keys.get("shape"), [7, 5])
    results = [gradients(tiny_model(**{"shape": "causal", **how, **keys}), **inputs) for how in ({}, recomputed)]
    assert results[0][0] == results[1][0]
    for name, gradient in results[0][1].items():
        assert torch.equal(gradient, results[1][1][name])


def test_what_is_recomputed_is_not_kept():
    """Bytes that autograd keeps for the backward pass, each storage once."""
    (inputs,) = packs_for("causal", [12, 9, 30])
    kept = []
    for how in ({}, *OTHERS, {"activation_checkpointing": "full"}):
        model, storages = tiny_model("causal", num_layers=4, **how), {}

        def keep(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(**inputs)
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        kept.append(sum(size.nbytes() for place, size in storages.items() if place not in weights))
    everything, every_second, attention_not, inputs_only = kept
    assert inputs_only < every_second < attention_not < everything


@pytest.mark.parametrize(
    ("variant", "checkpointing"),
    [*((name, "none") for name in VARIANTS), *itertools.product(("causal", "encdec"), ("full", "attention"))],
)
def test_a_compiled_model_gives_the_same_without_compiling_anew_for_each_pack(variant, checkpointing):
    """torch's `aot_eager` traces forward and backward as inductor does, without generating code.

    The first two packs are of one and of two documents: kernels answer those with tensors of other layouts.
    """
    torch._dynamo.reset()
    keys = {"shape": "causal", "activation_checkpointing": checkpointing, **VARIANTS[variant]}
    eager, compiled = tiny_model(**keys, dtype=torch.float32), tiny_model(**keys, dtype=torch.float32)
    traced = []
    from torch._dynamo.backends.debugging import aot_eager

    def backend(graph, inputs):
        traced.append(graph)
        return aot_eager(graph, inputs)

    for module in compiled.modules():
        if isinstance(module, Block):
            module.compile(backend=backend)
    counts = []
    for inputs in packs_for(keys["shape"], [12], [7, 5], [3, 9], [4, 4, 4], [12], [2, 10]):
        expected, ours = gradients(eager, **inputs), gradients(compiled, **inputs)
        torch.testing.assert_close(ours[0], expected[0], atol=1e-4, rtol=1e-5)
        for name, gradient in expected[1].items():
            torch.testing.assert_close(ours[1][name], gradient, atol=1e-5, rtol=1e-4)
        counts.append(len(traced))
    assert counts[0] > 0 and set(counts[1:]) == {counts[1]}


@pytest.mark.parametrize("shape", SHAPES)
def test_compile_is_asked_of_every_block(shape, monkeypatch):
    compiled = []
    monkeypatch.setattr(Block, "compile", lambda block: compiled.append(block))
    model = tiny_model(shape, compile=True)
    assert len(compiled) == (4 if shape == "encdec" else 2)
    assert compiled == [module for module in model.modules() if isinstance(module, Block)]


def test_weights_follow_from_seed_and_name_alone():
    small, deep = Transformer(config(), VOCAB, seed=3), Transformer(config(num_layers=3, init_std=0.02), VOCAB, seed=3)
    again, other = Transformer(config(), VOCAB, seed=3), Transformer(config(), VOCAB, seed=4)
    torch.manual_seed(99)
    for name, weight in small.named_parameters():
        assert torch.equal(weight, again.get_parameter(name))
        if weight.dim() > 1:
            assert not torch.equal(weight, other.get_parameter(name))
    name = "blocks.1.attention.qkv.weight"
    assert torch.equal(small.get_parameter(name), deep.get_parameter(name))
    matrices = [w for w in small.parameters() if w.dim() > 1]
    assert all(not torch.equal(a, b) for i, a in enumerate(matrices) for b in matrices[:i] if a.shape == b.shape)


def test_weights_have_the_spread_the_config_says():
    model = Transformer(config(d_model=64, d_ff=256, num_layers=8, init_std=0.05), 500)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert torch.equal(weight, torch.ones_like(weight))
            continue
        residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
        expected = 0.05 / 4 if residual else 0.05
        assert abs(weight.std().item() / expected - 1) < 0.06 and abs(weight.mean().item()) < expected / 10


def test_tied_embeddings_are_one_parameter_with_both_gradients():
    model = Transformer(config(tie_embeddings=True), VOCAB)
    assert model.head.weight is model.embedding.weight
    assert "head.weight" not in dict(model.named_parameters())
    pattern = AttentionPattern.causal([6])
    tokens = torch.zeros(6, dtype=torch.int64)
    _, grads = gradients(model, tokens, torch.arange(6), pattern, tokens)
    assert (grads["embedding.weight"].abs().sum(1) > 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_weights_stay_close_to_fp32(variant):
    keys = {"shape": "causal", "d_model": 64, "init_std": 0.1, **VARIANTS[variant]}
    (inputs,) = packs_for(keys["shape"], [12, 9])
    model = tiny_model(**keys, dtype=torch.float32)
    expected, grads = gradients(model, **inputs)
    loss, bf16_grads = gradients(model.bfloat16(), **inputs)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
    for name, gradient in grads.items():
        assert bf16_grads[name].dtype == torch.bfloat16
        error = (bf16_grads[name].float() - gradient).norm() / gradient.norm()
        assert error < 0.08, name


def test_positions_stay_exact_far_out_in_bf16():
    """Angles of position 100,000 are computed in fp32: in bf16 they would be off by hundreds of radians."""
    positions = torch.arange(100_000, 100_016)
    exact = positions[:, None].double() * 10000.0 ** (-torch.arange(0, 64, 2).double() / 64)
    tables = rope_tables(positions, rope_frequencies(config(head_dim=64), "cpu"))
    for table, function in zip(tables, (torch.cos, torch.sin), strict=True):
        assert table.dtype == torch.float32
        torch.testing.assert_close(table[:, 0].double(), function(exact), atol=1e-2, rtol=0)


def test_asking_for_flash_without_a_gpu_is_an_error():
    model = Transformer(config(attention_backend="flash"), VOCAB)
    with pytest.raises(ValueError, match="flash cannot run"):
        model(torch.zeros(3, dtype=torch.int64), torch.arange(3), AttentionPattern.causal([3]))


def test_a_model_of_no_memory_can_be_made_on_meta():
    with torch.device("meta"):
        model = Transformer(config(), VOCAB)
    assert all(p.is_meta for p in model.parameters())
