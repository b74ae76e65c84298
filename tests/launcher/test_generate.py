"""A look at converted models of every shape, through transformers."""

import shutil
from pathlib import Path

import pytest

from common.mistakes import Mistake
from launcher.generate import generate
from model.config import ModelConfig
from tests.model.exchange.exports import BASE, export, randomised

SHAPES = {
    "causal": {},
    "prefix": {"shape": "prefix"},
    "encoder": {"shape": "encoder"},
    "t5": {"shape": "encdec", "positions": "t5_bias", "num_encoder_layers": 1},
    "encdec": {"shape": "encdec"},
}


@pytest.fixture(scope="module")
def tokenizer_model(tokenizer) -> Path:
    return tokenizer.model_path


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer_model, tokenizer):
    """An exported model of each shape, made when it is asked for."""
    made = {}

    def folder(shape: str) -> Path:
        if shape not in made:
            model = randomised(ModelConfig(**BASE | SHAPES[shape]), vocab_size=tokenizer.vocab_size)
            how = {"ends_with_eos": shape not in ("causal", "prefix"), "reads_specials": shape != "causal"}
            made[shape] = export(model, tmp_path_factory.mktemp(shape) / "out", tokenizer_model, **how)
        return made[shape]

    return folder


def run(folder, *prompts, temperature=0.0, count=6):
    return generate(folder, prompts, max_new_tokens=count, temperature=temperature, seed=0)


@pytest.mark.parametrize("shape", ["causal", "prefix"])
def test_decoders_go_on_from_the_prompt(folders, shape):
    text, again = run(folders(shape), "def f(x):", "def f(x):")
    assert text.startswith("def f(x):") and len(text) > len("def f(x):") and again == text


@pytest.mark.parametrize("shape", ["t5", "encdec"])
def test_encoder_decoders_answer(folders, shape):
    answers = run(folders(shape), "def <extra_id_0>(x):", "import os", count=20)
    assert all(answers) and not any("<s>" in answer or answer.startswith("def") for answer in answers)


def test_encoders_fill_their_masks_and_leave_the_rest(folders):
    (text,) = run(folders("encoder"), "def f(<mask>):\n    return <mask>")
    assert text.startswith("def f(") and "):\n    return " in text and "<" not in text.replace("<0x", "")


def test_temperature_draws_other_texts(folders):
    for shape in ("causal", "encoder"):
        likeliest, drawn = (run(folders(shape), "x = <mask><mask><mask>", temperature=t)[0] for t in (0.0, 5.0))
        assert likeliest != drawn


def test_an_encoder_without_a_gap_to_fill_says_so(folders):
    with pytest.raises(ValueError, match=r"--prompt: 'x = 1' has no <mask>; mark the tokens to fill with it"):
        run(folders("encoder"), "x = 1")


def test_a_modeling_file_in_the_folder_is_not_run(folders, tmp_path):
    shutil.copytree(folders("prefix"), tmp_path / "copy")
    with (tmp_path / "copy" / "prefix_llama.py").open("a") as file:
        file.write("raise SystemExit\n")
    assert run(tmp_path / "copy", "x = ") == run(folders("prefix"), "x = ")


def test_folders_of_other_classes_are_refused(tmp_path):
    with pytest.raises(Mistake, match=r"no config\.json in it"):
        run(tmp_path, "x")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(Mistake, match="model_type gpt2 is none that is read here; allowed are llama, "):
        run(tmp_path, "x")
