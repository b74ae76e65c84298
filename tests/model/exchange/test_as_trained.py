"""A folder of ours is served as what it was trained as, or not at all."""

import json
import shutil

import pytest

from common.mistakes import Mistake
from launcher import text_models
from launcher.serving.loaded import load
from launcher.serving.vllm import run
from model.config import ModelConfig
from model.exchange.convert import MARKER
from model.exchange.importing import import_hf
from tests.model.exchange.exports import BASE, export, randomised
from tests.model.exchange.families import CASES


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tokenizer_model):
    model = randomised(ModelConfig(**BASE | {"shape": "prefix", "rope_theta": 500000.0}))
    return export(model, tmp_path_factory.mktemp("exported") / "prefix", tokenizer_model)


def changed(exported, tmp_path, **keys):
    folder = shutil.copytree(exported, tmp_path / "changed")
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | keys))
    return folder


def test_prefix_weights_labelled_as_a_causal_model_are_refused_by_all_who_read_them(exported, tmp_path):
    folder = changed(exported, tmp_path, model_type="llama", architectures=["LlamaForCausalLM"], auto_map={})
    uses = (
        load,
        text_models.load,
        lambda where: import_hf(where, tmp_path / "ours"),
        lambda where: run(where, "python", "x", 1, "x"),
    )
    for use in uses:
        with pytest.raises(Mistake, match=r"makes it a model of shape causal, but it was trained with shape prefix"):
            use(folder)
    (folder / MARKER).unlink()
    assert load(folder).kind == "decoder", "of a folder of others nobody knows better"


def test_another_rotary_base_than_that_of_the_training_is_refused(exported, tmp_path):
    parameters = {"rope_type": "default", "rope_theta": 10000.0}
    folder = changed(exported, tmp_path, rope_theta=10000.0, rope_parameters=parameters)
    with pytest.raises(Mistake, match=r"rope_theta 10000\.0, but it was trained with rope_theta 500000\.0"):
        load(folder)


KEYS_OF_SCORES = {
    "attn_logit_softcapping": (None, 7.0),
    "final_logit_softcapping": (None, 7.0),
    "query_pre_attn_scalar": (7, 13),
}


@pytest.mark.parametrize("key", KEYS_OF_SCORES)
def test_other_scores_than_those_of_the_training_are_refused(key, tmp_path, tokenizer_model):
    model = randomised(ModelConfig(**CASES["Gemma2ForCausalLM"]))
    folder = export(model, tmp_path / "out", tokenizer_model)
    assert load(folder).architecture.model_type == "gemma2"
    for value in KEYS_OF_SCORES[key]:
        with pytest.raises(Mistake, match=r"makes it a model of \w+_(softcap|scale) .*, but it was trained with "):
            load(changed(folder, tmp_path / str(value), **{key: value}))


PLACES = {
    "window": ("Gemma2ForCausalLM", {"sliding_window": 4}, r"sliding_window \[4, None\], but .* \[8, None\]"),
    "layers": ("Gemma2ForCausalLM", {"layer_types": ["full_attention"] * 2}, "sliding_window null, but"),
    "turned": (
        "GPTJForCausalLM",
        {"rotary_dim": 2},
        r"rope_fraction 0\.25, but it was trained with rope_fraction 0\.5",
    ),
    "both sides": ("ModernBertForMaskedLM", {"local_attention": 4}, r"sliding_window \[None, 4, 4, None\], but"),
    "own base": (
        "Gemma3ForCausalLM",
        {
            "rope_local_base_freq": 9.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 9.0},
            },
        },
        r"rope_theta \[9\.0, 10000\.0\], but .* \[500\.0, 10000\.0\]",
    ),
    "norms": ("LlamaForCausalLM", {"rms_norm_eps": 1e-3}, r"norm_eps 0\.001, but"),
}


@pytest.mark.parametrize("case", PLACES)
def test_other_windows_and_positions_than_those_of_the_training_are_refused(case, tmp_path, tokenizer_model):
    name, keys, said = PLACES[case]
    folder = export(randomised(ModelConfig(**CASES[name])), tmp_path / "out", tokenizer_model)
    assert load(folder)
    with pytest.raises(Mistake, match=f"makes it a model of {said}"):
        load(changed(folder, tmp_path, **keys))


def test_a_marker_that_describes_no_model_is_named(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "other")
    (folder / MARKER).write_text('{"model": {"num_heads": 0}}')
    with pytest.raises(Mistake, match=r"shardline\.json: it describes no model \(num_heads: Input should be"):
        load(folder)


@pytest.mark.parametrize("marker", ["{}", '{"model": 5}', '{"model": {"shape": "prefix", "from_tomorrow": 1}}'])
def test_markers_of_other_versions_say_what_they_can(marker, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "other")
    (folder / MARKER).write_text(marker)
    assert load(folder).architecture.model_type == "prefix_llama"
