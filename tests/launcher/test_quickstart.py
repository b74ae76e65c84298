"""The main job through the real command, in sizes that take seconds: made, then found made."""

import json
import os
import subprocess
import sys

import pytest

from data_pipeline.manifest import Manifest
from data_pipeline.reading.grid import objective_for
from data_pipeline.vocabulary import Vocabulary
from launcher import quickstart as stages
from launcher.config import load_config

SMALL = {
    "tokenizer.vocab_size": 800,
    "tokenizer.training_megabytes": 0.5,
    "model.num_layers": 2,
    "model.d_model": 64,
    "model.num_heads": 4,
    "model.num_kv_heads": 2,
    "model.d_ff": 128,
    "training.steps": 12,
    "training.sequence_length": 96,
    "training.global_batch_size": 8,
    "training.micro_batch_size": 2,
    "schedule.warmup_steps": 2,
    "evaluation.interval_steps": 6,
    "evaluation.num_samples": 16,
    "checkpoint.interval_steps": 6,
}


def quickstart(folder, **changes):
    sets = [f"--set={key}={value}" for key, value in {**SMALL, **changes}.items()]
    command = [sys.executable, "-m", "launcher.cli", "quickstart", *sets]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, quickstart(folder)


def test_it_ends_with_a_summary_of_things_that_are_there(finished):
    folder, result = finished
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert [f"[{index}/7]" in result.stdout for index in range(1, 8)] == [True] * 7
    for made in ("tokenizer/tokenizer.model", "dataset/manifest.json", "documents.jsonl"):
        assert (folder / "data" / "quickstart" / made).is_file()
    run = folder / "runs" / "quickstart"
    for made in ("checkpoints/latest", "hf/model.safetensors", "hf/tokenizer.json", "report.html", "logs/rank-1.log"):
        assert (run / made).is_file(), made
    assert any((run / "tensorboard").iterdir())
    assert "POST http://127.0.0.1:" in result.stdout and "answered by LlamaForCausalLM" in result.stdout
    assert "Next:" in result.stdout


def test_its_metrics_cover_every_step_and_the_loss_falls(finished):
    folder, _ = finished
    lines = [json.loads(line) for line in (folder / "runs/quickstart/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.1
    assert [line["step"] for line in lines if "evaluation" in line] == [6, 12]


def test_its_report_is_one_page_that_asks_the_network_for_nothing(finished):
    folder, _ = finished
    page = (folder / "runs/quickstart/report.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "What the model writes" in page


def test_its_folder_generates_without_anything_of_ours(finished):
    folder, _ = finished
    script = (
        "import sys, transformers as t\n"
        "tokenizer = t.AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "model = t.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "inputs = tokenizer('import os', return_tensors='pt', return_token_type_ids=False)\n"
        "print(len(model.generate(**inputs, max_new_tokens=5, min_new_tokens=5)[0]) - len(inputs['input_ids'][0]))\n"
        "assert not {'model', 'training', 'launcher', 'data_pipeline'} & {name.split('.')[0] for name in sys.modules}\n"
    )
    command = [sys.executable, "-P", "-c", script, str(folder / "runs/quickstart/hf")]
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=300)
    assert result.stdout.strip() == "5", result.stderr


def test_a_second_start_reuses_every_stage_and_says_so(finished):
    folder, _ = finished
    metrics = (folder / "runs/quickstart/metrics.jsonl").read_bytes()
    result = quickstart(folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("reused") >= 4
    assert (folder / "runs/quickstart/metrics.jsonl").read_bytes() == metrics


def test_more_steps_go_on_from_the_last_checkpoint(finished):
    folder, _ = finished
    result = quickstart(folder, **{"training.steps": 14})
    assert result.returncode == 0, result.stderr
    assert "training.steps was 12, is 14" in result.stdout
    events = [json.loads(line) for line in (folder / "runs/quickstart/events.jsonl").read_text().splitlines()]
    assert any(event["event"] == "resume" and event["step"] == 12 for event in events)


@pytest.mark.parametrize("shape", stages.SHAPES)
def test_each_shape_has_an_objective_that_means_something_and_the_data_of_the_others(shape, tokenizer):
    configs = [load_config(stages.CONFIG_FILE, stages.SHAPES[each]) for each in ("causal", shape)]
    assert configs[1].model.shape == shape and configs[0].data == configs[1].data
    assert (configs[0].run_dir == configs[1].run_dir) == (shape == "causal")
    record = Manifest(**tokenizer.record(), config_fingerprint="", splits={})
    assert objective_for(configs[1].objective, shape, Vocabulary.of(record))


@pytest.mark.parametrize("shape", stages.SHAPES)
def test_each_shape_writes_and_ends_with_an_answer_over_http(shape, folders, capsys):
    samples = []
    assert stages._generate(folders(shape), shape, samples) == "3 samples by transformers" and all(samples)
    assert stages._serve(folders(shape), shape).startswith("answered by ")
    said = capsys.readouterr().out
    path = "fill-mask" if shape == "encoder" else "completions"
    assert f"/v1/{path} " in said and "POST http://127.0.0.1:" in said and said.splitlines()[-1].startswith("  |")
