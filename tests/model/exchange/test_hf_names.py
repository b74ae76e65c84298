"""Tables of names against the classes they name, both ways."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from model.config import ModelConfig
from model.exchange.hf.encdec_rope import EncDecRopeConfig, EncDecRopeForConditionalGeneration
from model.exchange.hf.prefix_llama import PrefixLlamaConfig, PrefixLlamaForCausalLM
from model.exchange.hf_configs import architecture, hf_config
from model.exchange.hf_names import from_hf, part_shapes, to_hf, weight_table
from model.network.transformer import Transformer

SIZE = {"num_layers": 2, "d_model": 16, "num_heads": 4, "num_kv_heads": 2, "d_ff": 24}
ENCDEC = SIZE | {"shape": "encdec", "num_encoder_layers": 1}
CONFIGS = {
    "llama": SIZE,
    "llama tied": SIZE | {"head_dim": 12, "tie_embeddings": True},
    "llama biases": SIZE | {"bias": True},
    "seed_oss": SIZE | {"qkv_bias": True},
    "qwen3": SIZE | {"qk_norm": True},
    "prefix": SIZE | {"shape": "prefix"},
    "encoder": SIZE | {"shape": "encoder", "tie_embeddings": True},
    "t5": ENCDEC | {"positions": "t5_bias"},
    "t5 tied relu": ENCDEC | {"positions": "t5_bias", "tie_embeddings": True, "activation": "relu"},
    "rope": ENCDEC,
    "rope with all": ENCDEC | {"bias": True, "qk_norm": True, "activation": "gelu", "tie_embeddings": True},
}


def theirs_of(config):
    """Their class of that config, without weights."""
    keys = hf_config(config, 50, 64, torch.float32) | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    own = {
        "prefix_llama": (PrefixLlamaForCausalLM, PrefixLlamaConfig),
        "encdec_rope": (EncDecRopeForConditionalGeneration, EncDecRopeConfig),
    }
    autos = {"eurobert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}
    kind = keys.pop("model_type")
    with torch.device("meta"):
        if kind in own:
            model, settings = own[kind]
            return model(settings(**keys))
        return autos.get(kind, AutoModelForCausalLM).from_config(CONFIG_MAPPING[kind](**keys))


@pytest.mark.parametrize("case", CONFIGS)
def test_the_table_names_all_of_our_weights_and_all_of_theirs(case):
    config = ModelConfig(**CONFIGS[case])
    table, theirs = weight_table(config, 50), theirs_of(config)
    assert type(theirs).__name__ == architecture(config).name
    ours = {name: tuple(weight.shape) for name, weight in Transformer(config, 50).named_parameters()}
    assert set(table) == set(ours)
    expected = {name: tuple(weight.shape) for name, weight in theirs.named_parameters()}
    if case.startswith("t5"):  # a T5 made anew has no head of its own, one loaded has
        expected["lm_head.weight"] = (50, 16)
    assert part_shapes(table) == expected


@pytest.mark.parametrize("case", CONFIGS)
def test_there_and_back_is_the_same(case):
    config = ModelConfig(**CONFIGS[case])
    table = weight_table(config, 50)
    ours = {name: weight.data for name, weight in Transformer(config, 50).named_parameters()}
    theirs = dict(pair for name, weight in ours.items() for pair in to_hf(name, weight, table))
    back = dict(from_hf(theirs.__getitem__, table))
    assert set(back) == set(ours) and all(torch.equal(back[name], weight) for name, weight in ours.items())


def test_wrong_weights_are_refused_by_name():
    table = weight_table(ModelConfig(**SIZE), 50)
    with pytest.raises(ValueError, match=r"blocks\.9\.x: the model has no such weight"):
        to_hf("blocks.9.x", torch.zeros(1), table)
    with pytest.raises(ValueError, match=r"norm\.weight: the weight is \[17\], the model config makes it \[16\]"):
        to_hf("norm.weight", torch.zeros(17), table)
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight: the weight is \[1\]"):
        list(from_hf(lambda name: torch.zeros(1), table))


def test_what_ours_holds_once_must_be_alike_in_theirs():
    config = ModelConfig(**CONFIGS["t5 tied relu"])
    table = weight_table(config, 50)
    theirs = {name: torch.randn(shape) for name, shape in part_shapes(table).items()}
    with pytest.raises(ValueError, match=r"lm_head\.weight: it differs from shared\.weight"):
        list(from_hf(theirs.__getitem__, table))
    theirs["lm_head.weight"] = theirs["shared.weight"]
    with pytest.raises(ValueError, match=r"SelfAttention\.k\.weight: its heads differ where the config has 2 of them"):
        list(from_hf(theirs.__getitem__, table))
