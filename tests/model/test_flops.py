import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.flops import Work, num_matmul_parameters, num_parameters, train_flops
from model.network.transformer import Transformer
from tests.model.streams import inputs_of, make_document

SMALL = {"num_layers": 2, "d_model": 16, "num_heads": 4, "num_kv_heads": 2, "d_ff": 24}
CONFIGS = [
    ModelConfig(**SMALL),
    ModelConfig(num_layers=1, d_model=16, num_heads=2, head_dim=12, d_ff=40, tie_embeddings=True),
    ModelConfig(**SMALL, shape="prefix", positions="t5_bias", qk_norm=True, activation="relu"),
    ModelConfig(**SMALL, shape="encoder", positions="learned", max_positions=9, norm="layernorm", bias=True),
    ModelConfig(**SMALL, positions="alibi", parallel_block=True, activation="gelu", embedding_norm=True),
    ModelConfig(**SMALL, shape="encdec", positions="t5_bias", activation="geglu", attention_gate=True),
    ModelConfig(**SMALL, shape="encdec", norm_placement="post", norm="layernorm", bias=True, head_transform=True),
    ModelConfig(**SMALL, shape="encdec", num_encoder_layers=3, head_dim=6, norm="layernorm", bias=True, qkv_bias=False),
]


FLAGS = ("embedding_norm", "bias", "tie_embeddings", "head_transform", "head_bias")


@st.composite
def configs(draw) -> ModelConfig:
    """Any config there can be, of a small size."""

    def any_of(*values):
        return draw(st.sampled_from(values))

    shape, positions = any_of("causal", "prefix", "encoder", "encdec"), any_of("rope", "t5_bias", "learned", "alibi")
    keys = {
        "shape": shape,
        "num_layers": draw(st.integers(1, 3)),
        "num_encoder_layers": any_of(None, 1, 4) if shape == "encdec" else None,
        "d_model": any_of(8, 16),
        "num_heads": 4,
        "num_kv_heads": any_of(None, 1, 2),
        "head_dim": any_of(None, 6),
        "d_ff": draw(st.integers(1, 30)),
        "activation": any_of("swiglu", "geglu", "gelu", "gelu_tanh", "relu"),
        "norm": any_of("rmsnorm", "rmsnorm_1p", "layernorm"),
        "qk_norm": any_of(False, True, "all_heads"),
        "positions": positions,
        "max_positions": draw(st.integers(1, 40)) if positions == "learned" else None,
        "t5_num_buckets": any_of(8, 32),
        "t5_bias_per_layer": positions == "t5_bias" and draw(st.booleans()),
        "qkv_bias": any_of(None, True, False),
        "attention_output_bias": any_of(None, True, False),
        **{key: draw(st.booleans()) for key in FLAGS},
        "parallel_block": draw(st.booleans()) and shape != "encdec",
        "norm_placement": any_of("pre", "post", "sandwich", "output"),
        "parallel_norms": any_of(1, 2),
        "position_offset": any_of(0, 2) if positions == "learned" else 0,
        "segment_embeddings": any_of(None, 2),
        "sliding_window": any_of(None, 8),
        "attention_gate": draw(st.booleans()),
        "multi_token_depths": 0 if shape == "encoder" else any_of(0, 1, 2),
    }
    if keys["parallel_block"]:
        keys["norm_placement"] = "pre"
    else:
        keys["parallel_norms"] = 1
    if keys["embedding_norm"] and keys["norm_placement"] == "pre" and not keys["parallel_block"]:
        keys["first_attention_norm"] = draw(st.booleans())
    try:
        return ModelConfig(**keys)
    except ValidationError:
        assume(False)
        raise


@settings(max_examples=150, deadline=None)
@given(configs(), st.integers(2, 60))
def test_parameters_are_those_of_the_module(config, vocab_size):
    with torch.device("meta"):
        model = Transformer(config, vocab_size)
    assert num_parameters(config, vocab_size) == sum(p.numel() for p in model.parameters())


@settings(max_examples=50, deadline=None)
@given(configs(), st.integers(2, 60))
def test_matmul_parameters_are_matrices_that_multiply_tokens(config, vocab_size):
    with torch.device("meta"):
        model = Transformer(config, vocab_size)
    tables = ("embedding.weight", "_bias.weight")
    matrices = [p.numel() for name, p in model.named_parameters() if p.dim() == 2 and not name.endswith(tables)]
    tied = vocab_size * config.d_model if config.tie_embeddings else 0
    assert num_matmul_parameters(config, vocab_size) == sum(matrices) + tied


@pytest.mark.parametrize("config", CONFIGS)
def test_operations_are_those_torch_counts(config):
    """torch's counter sees the dense mask of the reference backend: every pair, so that is what it is told.

    In float64, because it does not know oneDNN's products.
    """
    model = Transformer(config.model_copy(update={"attention_backend": "reference"}), 50).double()
    document = make_document(config.shape, 9, 3, 7, torch.Generator())
    with FlopCounterMode(display=False) as counter:
        logits = model(**inputs_of([document]))
        torch.nn.functional.cross_entropy(logits, document.tokens).backward()
    is_encdec = config.shape == "encdec"
    work = Work(9, 9 * 9, 7, 7 * 7, 9 * 7, 9 * 9, 7 * 7) if is_encdec else Work(9, 9 * 9, num_window_pairs=9 * 9)
    assert counter.get_total_flops() == train_flops(config, 50, work)


@pytest.mark.parametrize("shape", ["causal", "encdec"])
def test_operations_of_further_depths_are_those_torch_counts(shape):
    config = ModelConfig(**SMALL, shape=shape, multi_token_depths=2, head_transform=True, attention_backend="reference")
    document = make_document(shape, 30, 0, 7, torch.Generator())
    with FlopCounterMode(display=False) as counter:
        Transformer(config, 50).double()(**inputs_of([document]), labels=document.tokens).loss_sum.backward()
    read = (7, 7 * 7, 30 * 7) if shape == "encdec" else (0, 0, 0)
    in_place = 3 * 2 * 50 * 16 * 30  # gradients of the head's weight are added up by addmm_, which it does not know
    expected = train_flops(config, 50, Work(30, 900, *read, num_further_pairs=2 * 900))
    assert counter.get_total_flops() + in_place == expected
    with pytest.raises(AssertionError, match="further depths are not told"):
        train_flops(config, 50, Work(30, 900))


def test_each_layer_counts_its_own_pairs():
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    keys = SMALL | {"num_layers": 5, "num_encoder_layers": 4, "shape": "encdec", "sliding_window": 4}
    config = ModelConfig(**keys, layer_types=kinds)
    work, of_one = Work(9, 45, 7, 49, 63, 30, 31), 12 * 4 * 4
    without = config.model_copy(update={"sliding_window": None, "layer_types": None})
    saved = 4 * (45 - 30) + 3 * (49 - 31)
    assert train_flops(without, 50, work) - train_flops(config, 50, work) == of_one * saved
    with pytest.raises(AssertionError, match="within the window are not told"):
        train_flops(config, 50, Work(9, 45))


def test_the_output_projection_counts_for_targets_alone_where_they_are_told():
    whole, part = (train_flops(CONFIGS[0], 50, Work(9, 45, num_targets=n)) for n in (9, 2))
    assert whole == train_flops(CONFIGS[0], 50, Work(9, 45)) and whole - part == 6 * 50 * 16 * 7


def test_known_sizes():
    """Those of Hugging Face's GPT-2 and T5 v1.1 base, to the last weight."""
    gpt2 = {"norm": "layernorm", "bias": True, "activation": "gelu_tanh", "tie_embeddings": True}
    config = ModelConfig(
        num_layers=12, d_model=768, num_heads=12, d_ff=3072, positions="learned", max_positions=1024, **gpt2
    )
    assert num_parameters(config, 50257) == 124_439_808
    t5 = {"shape": "encdec", "positions": "t5_bias", "activation": "geglu"}
    assert num_parameters(ModelConfig(num_layers=12, d_model=768, num_heads=12, d_ff=2048, **t5), 32128) == 247_577_856
