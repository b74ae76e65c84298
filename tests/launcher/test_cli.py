"""The command line as people meet it: what it prints and how it exits."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from launcher import cli, views
from launcher.console import say
from launcher.evaluate import Results
from launcher.stages import BuiltData


@pytest.fixture
def shardline(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["shardline", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    tree = {
        "name": "tiny",
        "tokenizer": {"path": "tok", "vocab_size": 600},
        "data": {"path": "dataset", "sources": [{"path": "*.jsonl"}]},
        "model": {"num_layers": 1, "d_model": 32, "num_heads": 2, "d_ff": 64},
        "training": {"steps": 4, "sequence_length": 16, "global_batch_size": 4},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def assert_one_sentence(result, *words):
    code, _, printed = result
    assert code == 2
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert "Traceback" not in printed
    for word in words:
        assert word in printed


def test_a_mistyped_key_ends_with_one_sentence_and_exit_code_2(shardline, config_file):
    result = shardline("train", config_file, "--set", "training.step=3")
    assert_one_sentence(result, str(config_file), "training.step", "did you mean 'steps'")


def test_training_without_a_tokenizer_or_dataset_names_the_command_to_run_first(shardline, config_file):
    assert_one_sentence(shardline("train", config_file), "dataset", "shardline data build")


def test_building_without_a_tokenizer_names_the_command_to_run_first(shardline, config_file, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "hello"}\n')
    assert_one_sentence(shardline("data", "build", config_file), "tokenizer.path", "shardline tokenizer train")


def test_sources_that_match_nothing_are_named(shardline, config_file):
    assert_one_sentence(shardline("tokenizer", "train", config_file), "*.jsonl")


def test_a_sample_of_documents_shows_what_filters_do_and_writes_nothing(shardline, config_file, tmp_path):
    lines = [
        {"text": "the same " * 40},
        {"text": "Write to jo@example.org, whoever wants to know what a river takes down to the sea."},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ("data", "build", config_file, "--set", "data.filters=[gopher_repetition, personal_data]")
    code, printed, _ = shardline(*command, "--sample", "10")
    assert code == 0
    for words in (
        "gopher_repetition: top_2_gram 1",
        "a.jsonl record 1",
        "mail_addresses 1",
        "1 of 2 documents (50.0%)",
    ):
        assert words in printed
    code, printed, _ = shardline(*command, "--sample", "10", "--json")
    report = json.loads(printed)
    assert (code, report["documents"], report["kept"]) == (0, 2, 1)
    assert [effect["name"] for effect in report["effects"]] == ["gopher_repetition", "personal_data"]
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "run.yaml"}


def test_a_sample_of_nothing_and_json_without_a_sample_are_refused(shardline, config_file):
    assert_one_sentence(
        shardline("data", "build", config_file, "--sample", "9", "--set", "data.sources=[]"), "is empty"
    )
    assert_one_sentence(shardline("data", "build", config_file, "--json"), "--sample 1000")


def test_a_batch_that_the_ranks_cannot_share_is_refused(shardline, config_file):
    result = shardline("train", config_file, "--nproc", 3)
    assert_one_sentence(result, "training.global_batch_size", "4", "multiple of 3")


def test_converting_what_is_no_run_is_refused(shardline, tmp_path):
    assert_one_sentence(shardline("convert", tmp_path, "--out", tmp_path / "out"), "config.yaml", "runs/")


def test_generating_from_what_is_no_model_is_refused(shardline, tmp_path):
    assert_one_sentence(shardline("generate", tmp_path, "--prompt", "x"), "config.json", "shardline convert")


def test_generating_for_no_prompt_and_serving_what_is_no_model_are_refused(shardline, tmp_path):
    assert_one_sentence(shardline("generate", tmp_path), "--prompt TEXT or --prompts FILE")
    assert_one_sentence(shardline("serve", tmp_path), "config.json", "shardline convert")


def test_an_unknown_target_format_is_refused(shardline, tmp_path):
    assert_one_sentence(shardline("convert", tmp_path, "--to", "onnx", "--out", "x"), "onnx", "hf, gguf")


def test_keys_of_one_target_format_are_refused_with_the_other(shardline, tmp_path):
    assert_one_sentence(shardline("convert", tmp_path, "--dtype", "f16", "--out", "x"), "--dtype f16", "leave it out")
    result = shardline("convert", tmp_path, "--to", "gguf", "--license", "mit", "--out", "x")
    assert_one_sentence(result, "--license", "leave it out")
    result = shardline("convert", tmp_path, "--to", "gguf", "--special-tokens-in-text", "--out", "x")
    assert_one_sentence(result, "parse_special", "leave it out with gguf")


def test_importing_what_is_no_model_is_refused(shardline, tmp_path):
    assert_one_sentence(shardline("import", tmp_path, "--out", tmp_path / "out"), "config.json", "Hugging Face")
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    assert_one_sentence(shardline("import", tmp_path, "--out", tmp_path / "out"), "mamba", "llama")


def test_chats_are_not_served_without_a_template(shardline, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert_one_sentence(shardline("serve", tmp_path, "--port", "0", "--chat"), str(tmp_path), "chat template")


def test_inspecting_a_folder_without_a_manifest_is_refused(shardline, tmp_path):
    assert_one_sentence(shardline("data", "inspect", tmp_path), "manifest.json")


LONG = "x" * 5000


@pytest.mark.parametrize(
    "words",
    [
        (LONG,),
        (f"--{LONG}",),
        ("model", LONG),
        ("model", "show", LONG),
        ("train", LONG),
        ("train", "run.yaml", LONG),
        ("train", "run.yaml", f"--{LONG}"),
        ("train", "run.yaml", "--nproc", LONG),
        ("train", "run.yaml", "--set", LONG),
        ("train", "run.yaml", "--set", f"training.steps={LONG}"),
        ("submit", "run.yaml", "--cluster", LONG, "--nodes", "1"),
        ("submit", "run.yaml", "--cluster", "plain", "--nodes", "1", "--stage", LONG),
        ("submit", "run.yaml", "--cluster", "plain", "--nodes", "1", "--time", LONG),
        ("convert", LONG, "--out", "x"),
        ("convert", ".", "--out", "x", "--to", LONG),
        ("import", LONG, "--out", "x"),
        ("generate", LONG, "--prompt", "x"),
        ("generate", ".", "--prompts", LONG),
        ("serve", LONG),
        ("serve", ".", "--engine", LONG),
        ("quickstart", "--shape", LONG),
        ("evaluate", ".", "--task", LONG),
        ("data", "inspect", LONG),
        ("data", "verify", LONG),
        ("status", LONG),
        ("checkpoint", "upgrade", LONG),
    ],
    ids=lambda words: " ".join(word[:20] for word in words),
)
def test_words_without_end_are_echoed_in_part(shardline, config_file, words):
    code, _, said = shardline(*words)
    assert code == 2
    assert len(said) < 1500
    assert "Traceback" not in said


def test_what_is_said_on_the_way_is_no_part_of_the_json(shardline, monkeypatch, capsys):
    def evaluate(where, questions, tasks, **how):
        say("loading")
        return Results(where, "step-1", 1, {}, {})

    monkeypatch.setattr("launcher.evaluate.evaluate", evaluate)
    assert shardline("evaluate", "run", "--task", "x", "--json") == (0, "{}\n", "loading\n")
    assert shardline("evaluate", "run", "--task", "x")[1].startswith("loading\n")


def test_a_shown_config_can_be_used_as_a_config(shardline, config_file, tmp_path):
    code, shown, _ = shardline("config", "show", config_file, "--set", "training.zero_stage=3")
    assert code == 0
    (tmp_path / "shown.yaml").write_text(shown)
    assert shardline("config", "show", tmp_path / "shown.yaml")[1] == shown
    assert yaml.safe_load(shown)["training"]["zero_stage"] == 3


def test_the_schema_is_json_with_every_section(shardline):
    code, printed, _ = shardline("config", "schema")
    assert code == 0
    assert {"tokenizer", "data", "model", "training"} <= json.loads(printed)["properties"].keys()


@pytest.mark.parametrize(
    "command",
    [
        ("quickstart",),
        ("tokenizer", "train"),
        ("data", "build"),
        ("data", "inspect"),
        ("data", "verify"),
        ("train",),
        ("convert",),
        ("import",),
        ("generate",),
        ("serve",),
        ("config", "show"),
        ("config", "schema"),
        ("doctor",),
    ],
)
def test_every_command_has_help_with_an_example(shardline, command):
    code, printed, _ = shardline(*command, "--help")
    assert code == 0
    assert f"shardline {' '.join(command)}" in printed
    assert "Example" in printed


def test_what_a_build_dropped_is_told_by_filter():

    dropped = {"c4.few_sentences": 1, "c4.lorem_ipsum": 1200, "too_short": 2}
    said = views.data(BuiltData(Path("data"), 3, 40, 2, dropped, reused=False))
    assert said.endswith("in data; dropped: 1,201 c4, 2 too short")
