"""A look at converted models of every shape, through transformers."""

import io
import shutil

import pytest

from common.mistakes import Mistake
from launcher.generate import generate, prompts_of


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
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(Mistake, match="model_type mamba is none that is read here; allowed are "):
        run(tmp_path, "x")


@pytest.mark.parametrize("shape", ["causal", "encoder", "t5"])
def test_what_is_written_for_a_prompt_does_not_depend_on_the_size_of_batches(folders, shape):
    prompts = ["x = <mask>", "def f(x, y):  # <mask> and <mask>", "<mask>"]
    how = {"max_new_tokens": 8, "temperature": 1.0, "top_k": 50, "seed": 3}
    assert generate(folders(shape), prompts, batch_size=1, **how) == generate(folders(shape), prompts, **how)


def test_prompts_come_from_lines_of_a_file_or_of_standard_input(tmp_path, monkeypatch):
    (tmp_path / "lines").write_text("one\r\n\n  two\n")
    (tmp_path / "some.jsonl").write_text('{"prompt": "one\\nline"}\n"two"\n')
    monkeypatch.setattr("sys.stdin", io.StringIO("three\n"))
    found = [prompts_of(name) for name in (str(tmp_path / "lines"), str(tmp_path / "some.jsonl"), "-")]
    assert found == [["one", "  two"], ["one\nline", "two"], ["three"]]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty", b"\n\n", "holds no prompts; write one a line"),
        ("binary", b"\xff\xfe", "is no text in UTF-8"),
        ("some.jsonl", b'{"prompt": "x"}\n{"text": 1}\n', 'line 2: .* is no {"prompt": "..."}'),
    ],
)
def test_files_that_hold_no_prompts_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Mistake, match=said):
        prompts_of(str(tmp_path / name))
