"""Whatever stands in a config file or after --set: it is read, or it ends in one sentence."""

import itertools
import os
import string

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.mistakes import Mistake
from launcher.config import check_config, load_config, to_yaml
from launcher.profiles import load_profile
from tests.launcher.test_config import MINIMAL
from training.config import CheckpointConfig

LONGEST_SENTENCE = 900
MERGED = """
tokenizer: {path: tok}
data: {path: data}
training: &short {steps: 10, sequence_length: 32, global_batch_size: 4}
model: {num_layers: 2, d_model: 64, num_heads: 4, d_ff: 128}
name: tiny
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile") / "run.yaml"


def outcome(file, text, *overrides):
    """The config as YAML, or the sentence that refuses it."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    try:
        return to_yaml(load_config(file, overrides))
    except Mistake as mistake:
        sentence = str(mistake)
        assert sentence.isprintable(), sentence
        assert len(sentence) < LONGEST_SENTENCE, sentence
        return sentence


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("2001-99-99", "is read as a date; quote it"),
        ("2001-01-01", "is read as a date; quote it"),
        ("!!timestamp x", "'x' is read as a date"),
        ("!!int x", "'x' is no int"),
        ("!!float x", "'x' is no float"),
        ("!!bool x", "'x' is no bool"),
        ('!!int ""', "'' is no int"),
        ("1" * 5000, "a number of 5,000 digits"),
        ("0x" + "f" * 5000, "a number of 5,002 digits"),
        ("24:00:00", "base 8 or 60; quote it"),
        ("01234", "base 8 or 60; quote it"),
        ("[" * 3000, "more than 40 levels"),
        ("{a: " * 3000, "more than 40 levels"),
        ("!!set {a, b}", "a value of kind set"),
        ("!!binary aGVsbG8=", "a value of kind bytes"),
        ("&a [*a]", "values that hold themselves"),
        ("&a {<<: *a}", "found {}"),
        ("!!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("[1", "not valid YAML"),
        ("{[1]: 2}", "is no word"),
        ("{1: 2}", "key '1' is no word"),
        ("{<<: 3}", "expected a mapping"),
    ],
)
def test_a_value_that_is_not_what_it_looks_like_is_one_sentence_in_a_file_and_after_set(file, value, words):
    base = yaml.safe_dump(MINIMAL)
    assert words in outcome(file, f"{base}\nseed: {value}\n")
    assert words in outcome(file, base, f"seed={value}")


def test_values_that_grow_behind_aliases_are_refused(file):
    layers = [f"  l{depth}: &l{depth} [{', '.join([f'*l{depth - 1}'] * 10)}]" for depth in range(1, 12)]
    text = "\n".join(["training:", "  l0: &l0 [1]", *layers])
    assert "more than 100,000 values" in outcome(file, text)


def test_merge_keys_are_merged_and_what_stands_beside_them_wins(file):
    text = MERGED + "evaluation: &eval {num_samples: 7}\ncheckpoint: {<<: {keep: 5, interval_steps: 3}, keep: 4}\n"
    config = yaml.safe_load(outcome(file, text))
    assert config["checkpoint"] == CheckpointConfig(interval_steps=3, keep=4).model_dump()
    deep = MERGED.replace("&short {", "{<<: &base {zero_stage: 2, steps: 99}, ")
    assert yaml.safe_load(outcome(file, deep))["training"]["steps"] == 10
    assert yaml.safe_load(outcome(file, deep))["training"]["zero_stage"] == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.steps", "x" * 5000),
        ("training.steps", "[" + "x, " * 5000 + "]"),
        ("training.precision", "x" * 5000),
        ("name", "/" * 5000),
        ("model", "x" * 5000),
        ("model.preset", "x" * 5000),
        ("x" * 5000, "1"),
        ("training." + "x" * 5000, "1"),
        ("data.sources." + "9" * 5000 + ".path", "1"),
        ("data.sources.0.path." + "x" * 5000, "1"),
        ("objective.name", "x" * 5000),
        ("optimizer.betas", "[1, 2, " + "3, " * 5000 + "]"),
        ("optimizer.betas", "[true, " + "3, " * 5000 + "]"),
    ],
)
def test_what_is_wrong_is_echoed_in_part_when_it_is_long(file, key, value):
    sentence = outcome(file, yaml.safe_dump(MINIMAL), f"{key}={value}")
    assert "x" * 200 not in sentence


@pytest.mark.parametrize(
    "key", ["tokenizer.path", "data.path", "data.sources.0.path", "runs_dir", "training.initial_weights"]
)
def test_a_tilde_is_the_home_folder_in_every_path(file, monkeypatch, key):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = yaml.safe_load(outcome(file, yaml.safe_dump(MINIMAL), f"{key}=~/x"))
    for part in key.split("."):
        config = config[int(part) if part.isdecimal() else part]
    assert config == "/home/somebody/x"


@pytest.mark.parametrize("value", ["''", r'"a\0b"', r'"\ud800"'])
def test_what_can_be_no_path_is_refused(file, value):
    sentence = outcome(file, yaml.safe_dump(MINIMAL), f"data.path={value}")
    assert "data.path: found " in sentence
    assert "expected the name of a file or folder" in sentence


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [
            "2001-99-99",
            "~",
            "~root/x",
            "~nobody-of-this-name/x",
            "0x1f",
            "1_000",
            ".inf",
            "<<",
            "=",
            "1e400",
            "a" * 3000,
            "\0",
            "a\nb",
        ]
    ),
)
words = st.one_of(
    st.sampled_from(["name", "path", "steps", "sources", "parts", "deepspeed", "preset", "lr", "betas", "objectives"]),
    st.text(max_size=8),
)
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))
KEYS = [
    *MINIMAL,
    *("seed", "runs_dir", "objective", "optimizer", "schedule", "evaluation", "checkpoint"),
    *(f"training.{key}" for key in ("steps", "deepspeed", "initial_weights", "zero_stage", "hang_minutes")),
    *("model.preset", "model.shape", "optimizer.betas", "data.sources.0", "objective.parts", "evaluation.objectives"),
]


def planted(key, value):
    """A config that is right but for the value at one key."""
    tree = yaml.safe_load(yaml.safe_dump(MINIMAL))
    *parents, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
    node = tree
    for part in parents:
        node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
    node[last] = value
    return tree


@settings(max_examples=400)
@given(st.sampled_from(KEYS), trees)
def test_any_tree_is_read_or_refused_in_one_sentence(key, value):
    try:
        check_config(planted(key, value), "run.yaml")
    except Mistake as mistake:
        assert str(mistake).isprintable()
        assert len(str(mistake)) < LONGEST_SENTENCE


@settings(max_examples=300)
@given(st.sampled_from(KEYS), st.one_of(st.text(max_size=40), trees.map(lambda tree: yaml.safe_dump(tree).strip())))
@example("name", "2001-99-99")
@example("name", "\ud800")
def test_any_text_after_set_is_read_or_refused_in_one_sentence(file, key, text):
    outcome(file, yaml.safe_dump(MINIMAL), f"{key}={text}")


@settings(max_examples=200)
@given(st.text(alphabet=string.ascii_letters + ".=[]{}0123456789'\"&*!<\n ", max_size=40))
def test_any_override_at_all_is_read_or_refused_in_one_sentence(file, override):
    outcome(file, yaml.safe_dump(MINIMAL), override)


@settings(max_examples=200)
@given(st.binary(max_size=60), st.integers(0, 400))
def test_any_bytes_in_a_file_are_read_or_refused_in_one_sentence(file, noise, position):
    text = yaml.safe_dump(MINIMAL).encode()
    position %= len(text)
    outcome(file, text[:position] + noise + text[position:])


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(["&a", "*a", "<<:", "[", "]", "{", "}", "!!int", "!!set", "?", "a:", "- ", "\n", " x"]))
)
def test_any_yaml_that_looks_like_one_is_read_or_refused_in_one_sentence(file, pieces):
    outcome(file, " ".join(itertools.chain(["name:"], pieces)))


def test_a_folder_or_an_unreadable_file_in_place_of_a_config_is_named(tmp_path):
    for name in (tmp_path, tmp_path / ("x" * 3000), tmp_path / "run.yaml" / "below"):
        (tmp_path / "run.yaml").touch()
        with pytest.raises((Mistake, OSError)) as caught:
            load_config(name)
        assert isinstance(caught.value, Mistake) or caught.value.filename


def test_a_pipe_in_place_of_a_config_or_of_a_profile_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.yaml")
    for read in (load_config, lambda path: load_profile(str(path))):
        with pytest.raises(
            Mistake, match=r"run\.yaml: it is a pipe or a device, where a file belongs; name a YAML file"
        ):
            read(tmp_path / "run.yaml")
