"""ModernBERT's config.json, which says by old keys or by new ones which layers see all and how they rotate."""

import json

import pytest
import torch
import transformers

from common.mistakes import Mistake
from model.config import FULL, SLIDING, ModelConfig
from model.exchange.convert import hf_config
from model.exchange.importing import import_hf, imported_config
from model.exchange.parity import run_ours
from tests.model.exchange.exports import load_ours, tokens
from tests.model.exchange.families import CASES, MODERN, VOCAB, config_of

PUBLISHED = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 1,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 2,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 48,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-05,
    "local_attention": 8,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 6,
    "num_hidden_layers": 5,
    "pad_token_id": 3,
    "position_embedding_type": "absolute",
    "sep_token_id": 2,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": VOCAB,
}
"""As that of ModernBERT-base, but for sizes and ids."""
OLD_KEYS = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")


@pytest.fixture
def folder(tmp_path):
    """Random weights of transformers' class beside that config.json."""
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(**PUBLISHED)
    model = transformers.ModernBertForMaskedLM(config)
    for weight in model.parameters():
        weight.data.uniform_(0.5, 1.5) if weight.dim() == 1 else weight.data.normal_(0, 0.15)
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(PUBLISHED))
    return tmp_path / "theirs"


def changed(folder, **changes):
    """The folder with other keys; those that are ... are left out."""
    facts = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: facts[key] for key in facts if facts[key] is not ...}))
    return folder


def test_old_keys_are_read_as_transformers_reads_them(folder, tmp_path):
    import_hf(folder, tmp_path / "ours")
    config, _ = imported_config(tmp_path / "ours")
    assert (config.rope_theta, config.sliding_rope_theta, config.sliding_window) == (160000.0, 10000.0, 8)
    assert config.layer_types == [FULL, SLIDING, SLIDING]
    assert not (config.first_attention_norm or config.bias or config.has_qkv_bias or config.has_attention_output_bias)
    theirs, (text,) = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval(), tokens(30)
    with torch.no_grad():
        logits = theirs(text[None]).logits[0]
    torch.testing.assert_close(run_ours(load_ours(tmp_path / "ours"), text, text[:0]), logits, atol=1e-5, rtol=1e-5)


def test_new_keys_say_the_same(folder, tmp_path):
    import_hf(folder, tmp_path / "old")
    kinds = [SLIDING if i % 3 else FULL for i in range(5)]
    bases = {FULL: 160000.0, SLIDING: 10000.0}
    parameters = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()}
    changed(folder, **dict.fromkeys(OLD_KEYS, ...), layer_types=kinds, rope_parameters=parameters)
    import_hf(folder, tmp_path / "new")
    assert imported_config(tmp_path / "old") == imported_config(tmp_path / "new")


@pytest.mark.parametrize("period", [[FULL], [FULL, SLIDING], [FULL, SLIDING, SLIDING, SLIDING]])
def test_both_kinds_of_keys_are_written_where_the_old_ones_can_say_it(period):
    config = ModelConfig(**MODERN | {"layer_types": None if len(period) == 1 else period, "num_layers": 8})
    if len(period) == 1:
        config = config.model_copy(update={"sliding_window": None, "sliding_rope_theta": None})
    facts = hf_config(config, VOCAB, 64, torch.float32)
    assert facts["global_attn_every_n_layers"] == len(period)
    assert facts["layer_types"] == [SLIDING if i % len(period) else FULL for i in range(8)]
    assert facts["global_rope_theta"] == facts["rope_parameters"][FULL]["rope_theta"] == 2e5
    assert facts["local_rope_theta"] == facts["rope_parameters"][SLIDING]["rope_theta"]


@pytest.mark.parametrize(
    "case", ["ModernBertForMaskedLM, biases in attention alone", "ModernBertForMaskedLM, biases elsewhere"]
)
def test_the_old_number_is_null_where_it_would_say_something_else(case):
    assert case in CASES
    facts = hf_config(config_of(case), VOCAB, 64, torch.float32)
    assert facts["global_attn_every_n_layers"] is None and SLIDING in facts["layer_types"]


REFUSED = {
    "another function in the head": (
        {"classifier_activation": "silu"},
        "classifier_activation silu has no place here; only gelu has",
    ),
    "a function that has no gate here": ({"hidden_activation": "relu"}, "hidden_activation relu has no place here"),
    "norms with biases alone": ({"norm_bias": True}, "norm_bias true has no place here; only false has"),
    "a head with biases alone": ({"classifier_bias": True}, "classifier_bias true has no place here; only false has"),
    "no layer said to see all": ({"global_attn_every_n_layers": None}, "null says nothing of layers; give a number"),
    "no base": ({"local_rope_theta": None}, "local_rope_theta is null; it must be a number from 1 to"),
    "a window of one token": ({"local_attention": 1}, "no place here .*sliding_window"),
    "another depth": ({"layer_types": [FULL, SLIDING]}, r"num_hidden_layers` \(5\) must be equal"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_is_refused_by_its_key(case, folder, tmp_path):
    changes, message = REFUSED[case]
    with pytest.raises(Mistake, match=message) as refusal:
        import_hf(changed(folder, **changes), tmp_path / "ours")
    assert "\n" not in str(refusal.value)
