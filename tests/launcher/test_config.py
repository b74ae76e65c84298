"""Config files: what loads, what is refused, and in which words."""

import pytest
import yaml

from launcher.config import apply_override, load_config, save_config, to_yaml
from training.config import RunConfig

MINIMAL = {
    "name": "tiny",
    "tokenizer": {"path": "tok"},
    "data": {"path": "data", "sources": [{"path": "a.jsonl"}]},
    "model": {"num_layers": 2, "d_model": 64, "num_heads": 4, "d_ff": 128},
    "training": {"steps": 10, "sequence_length": 32, "global_batch_size": 4},
}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def refusal(config_file, *overrides):
    with pytest.raises(ValueError) as caught:
        load_config(config_file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_resolved_config_reads_back_equal(config_file, tmp_path):
    config = load_config(config_file)
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config
    assert yaml.safe_load(to_yaml(config))["optimizer"]["betas"] == [0.9, 0.95]


def test_overrides_reach_nested_keys_and_list_items_with_yaml_values(config_file):
    config = load_config(
        config_file,
        ["optimizer.lr=1e-3", "data.sources.0.path='x y.jsonl'", "model.tie_embeddings=true", "schedule.name=wsd"],
    )
    assert config.optimizer.lr == 1e-3
    assert config.data.sources[0].path == "x y.jsonl"
    assert config.model.tie_embeddings is True
    assert config.schedule.name == "wsd"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.num_layer=3", ["model.num_layer", "unknown key", "did you mean 'num_layers'"]),
        ("trainin.steps=3", ["trainin", "did you mean 'training'"]),
        ("data.sources.0.paht=3", ["data.sources[0].paht", "did you mean 'path'"]),
        ("training.steps=abc", ["training.steps", "'abc'", "integer"]),
        ("training.steps=0", ["training.steps", "0", "greater than or equal to 1"]),
        ("training.precision=fp16", ["training.precision", "'fp16'", "'fp32' or 'bf16'"]),
        ("model.shape=causl", ["model.shape", "did you mean 'causal'"]),
        ("objective.name=mixtur", ["objective.name: found 'mixtur'", "or 'mixture'; did you mean 'mixture'?"]),
        ("objective=ul2", ["objective: found 'ul2'; expected keys and values"]),
        (
            "objective={name: mixture, parts: [{name: span_corruption, mean_span_length: true}]}",
            ["objective.parts[0].mean_span_length: found True; expected a number"],
        ),
        ("model.num_kv_heads=3", ["num_kv_heads", "3", "does not divide num_heads 4"]),
        ("training.zero_stage=0", ["zero_stage", "bf16", "precision fp32"]),
        ("training.micro_batch_size=3", ["micro_batch_size", "does not divide global_batch_size 4"]),
        ("schedule.warmup_steps=99", ["schedule.warmup_steps", "99", "training.steps 10"]),
        ("name=../evil", ["name", "../evil"]),
        ("training.steps", ["expected key=value"]),
        ("training.steps.x=1", ["training.steps", "not a section"]),
        ("data.sources.4.path=x", ["'4'", "items 0 to 0"]),
        ("optimizer.lr=[1", ["not valid YAML"]),
        ("model={[1]: 2}", ["not valid YAML"]),
        ("optimizer.lr=.nan", ["optimizer.lr"]),
        ("data.filters=[gopher]", ["data.filters[0].name: 'gopher' is no filter; did you mean 'gopher_quality'?"]),
        ("data.filters=[{min_words: 2}]", ["data.filters[0].name: None is no filter; there are gopher_quality, "]),
        (
            "data.filters=[c4, {name: gopher_quality, min_wrods: 2}]",
            ["data.filters[1].min_wrods: unknown key; did you"],
        ),
        ("data.filters=[{name: c4, min_sentences: -2}]", ["data.filters[0].min_sentences: found -2; input should be"]),
        ("data.filters=[language]", ["data.filters[0].keep: this key is required"]),
        ("data.filters=[{name: language, keep: [en, english]}]", ["data.filters[0].keep[1]: 'english'", "mean 'en'?"]),
        ("data.filters=[{name: language, keep: [xx]}]", ["'xx' is no language the model knows; it takes codes"]),
        ("data.filters=[3]", ["data.filters[0]: found 3"]),
        ("optimizer.lr=.inf", ["optimizer.lr", "finite"]),
    ],
)
def test_a_mistake_is_one_sentence_with_key_and_remedy(config_file, override, words):
    message = refusal(config_file, override)
    for word in words:
        assert word in message


def test_a_missing_required_key_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "training": {"steps": 3, "sequence_length": 8}}))
    assert "training.global_batch_size: this key is required" in refusal(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [1", "line 1"),
        ("name: a\nname: b\n", "'name' stands twice"),
        ("- a\n", "expected a mapping"),
        ("", "expected a mapping"),
    ],
)
def test_broken_files_are_refused_with_their_place(tmp_path, text, words):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    message = refusal(path)
    assert str(path) in message
    assert words in message


def test_a_mistyped_file_name_offers_the_nearest(config_file):
    assert "did you mean" in refusal(config_file.with_name("runn.yaml"))


def test_every_key_of_the_schema_has_a_description():
    definitions = RunConfig.model_json_schema()
    for section in (definitions, *definitions["$defs"].values()):
        for key, facts in section["properties"].items():
            assert facts.get("description") or "$ref" in facts, key


def test_an_override_may_create_a_section_that_was_empty():
    tree = {"schedule": None}
    apply_override(tree, "schedule.name=linear")
    assert tree == {"schedule": {"name": "linear"}}
