"""Real ranks of real runs: stopping, killing, resuming and refusing."""

import json
import resource
import shutil
import signal
import time

import pytest
import torch

from common.mistakes import is_mistake
from data_pipeline.manifest import Manifest
from data_pipeline.reading.batches import Reading
from data_pipeline.reading.loader import evaluation_batches
from model.network.transformer import Transformer
from tests.training.runs import (
    VOCAB_SIZE,
    events_of,
    finish,
    save_config,
    start_ranks,
    steps_of,
    tiny_config,
    torchrun,
    wait_for_event,
    wait_for_step,
    write_dataset,
)
from training.events import EventLog
from training.state.folder import latest_checkpoint
from training.state.loading import load_weights
from training.step import Patterns
from training.worker import EXIT_DONE, EXIT_MISTAKE, EXIT_STOPPED, main, read_config, report

EXACT = ("step", "loss", "grad_norm", "lr", "samples_consumed", "tokens_consumed", "documents_cut", "padding")


def exact(folder) -> list[list]:
    """What two equal runs must have written alike."""
    return [[line[name] for name in EXACT] for line in steps_of(folder)]


def same_weights(one, other) -> bool:
    """Whether two runs ended with the same weights to the last bit."""
    a, b = (load_weights(latest_checkpoint(folder)) for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run_to_end(folder) -> None:
    """Two ranks train until the run is done."""
    results = finish(start_ranks(folder, 2))
    assert [code for code, _ in results] == [EXIT_DONE, EXIT_DONE], results


@pytest.fixture(scope="module")
def straight(dataset, tmp_path_factory):
    """A run of 60 steps that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    save_config(long_config(dataset), folder)
    done = torchrun(2, "-m", "training.worker", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def long_config(dataset):
    return tiny_config(
        dataset, training={"steps": 60}, checkpoint={"interval_steps": 20, "keep": 2, "keep_every_steps": 40}
    )


def test_a_run_stopped_by_a_signal_to_one_rank_saves_and_goes_on_to_the_same_end(dataset, tmp_path):
    def save_length(steps: int, folder) -> None:
        save_config(tiny_config(dataset, training={"steps": steps}, schedule={"name": "constant"}), folder)

    folder, straight = tmp_path / "run", tmp_path / "straight"
    save_length(1_000_000, folder)  # more than any machine gets through before the signal
    ranks = start_ranks(folder, 2)
    wait_for_step(folder, 3, ranks)
    ranks[1].send_signal(signal.SIGTERM)
    assert [code for code, _ in finish(ranks)] == [EXIT_STOPPED, EXIT_STOPPED]
    stopped = events_of(folder, "stop")[0]["step"]
    assert stopped >= 3
    assert latest_checkpoint(folder).name == f"step-{stopped:08d}"
    assert steps_of(folder)[-1]["step"] == stopped
    for each in (folder, straight):
        save_length(stopped + 5, each)
        run_to_end(each)
    assert [event["step"] for event in events_of(folder, "resume")] == [stopped]
    assert exact(folder) == exact(straight)
    assert same_weights(folder, straight)


def test_a_signal_that_comes_before_the_first_step_ends_the_run_there(dataset, tmp_path):
    folder = save_config(tiny_config(dataset, training={"steps": 1_000_000}), tmp_path / "run")
    ranks = start_ranks(folder, 2)
    wait_for_event(folder, "start", ranks)
    ranks[1].send_signal(signal.SIGTERM)
    assert [code for code, _ in finish(ranks)] == [EXIT_STOPPED, EXIT_STOPPED]
    (stop,) = events_of(folder, "stop")
    assert stop["signal"] == "on another rank"
    assert stop["step"] == len(steps_of(folder))  # 0 unless this test was kept waiting for long
    saved = latest_checkpoint(folder)
    assert (saved is None) == (stop["step"] == 0)


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(28, "No space left on device"), EXIT_MISTAKE), (KeyError("x"), 1)]
)
def test_the_last_line_is_what_went_wrong_even_if_no_event_can_be_written(tmp_path, capsys, error, code):
    assert report(error, EventLog(tmp_path / "nowhere", 0)) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert "events.jsonl: not written" in lines[0]
    assert lines[-1] in ("error: No space left on device", "KeyError: 'x'")


def test_a_mistake_shows_its_traceback_only_when_asked_to(capsys, monkeypatch):
    report(OSError(28, "No space left on device"), None)
    assert capsys.readouterr().err == "error: No space left on device\n"
    monkeypatch.setenv("SHARDLINE_DEBUG", "1")
    report(OSError(28, "No space left on device"), None)
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "OSError: [Errno 28] No space left on device",
        "error: No space left on device",
    ]


def test_a_finished_run_has_what_it_promises(straight):
    lines = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    evaluations = {line["step"]: line["evaluation"] for line in lines if "evaluation" in line}
    assert list(evaluations) == [10, 20, 30, 40, 50, 60]
    assert evaluations[60]["loss"] < evaluations[10]["loss"]
    assert len({evaluation["unigram_entropy"] for evaluation in evaluations.values()}) == 1
    assert sorted(path.name for path in (straight / "checkpoints").iterdir()) == [
        "latest",
        "step-00000040",
        "step-00000060",
    ]
    assert [event["event"] for event in map(json.loads, (straight / "events.jsonl").open())][-1] == "finish"
    assert list((straight / "tensorboard").iterdir())
    (start,) = events_of(straight, "start")
    assert {"device", "collectives", "attention", "world_size", "zero_stage", "steps"} <= start.keys()
    (ready,) = events_of(straight, "ready")
    assert ready["holds"]["optimizer"] == "DeepSpeedZeroOptimizer"
    assert ready["holds"]["weights"] == 2 * ready["holds"]["gradients"] == ready["holds"]["moments"] > 0


def held_out_loss(config, state) -> float:
    """Loss of these weights on the run's held-out samples, in one process without an engine."""
    model = Transformer(config.model, VOCAB_SIZE)
    tied = {"head.weight": state["embedding.weight"]} if config.model.tie_embeddings else {}
    model.load_state_dict(state | tied)
    manifest = Manifest.load(config.data.path)
    reading = Reading(config.data.path, manifest, config.objective, "causal", 32, 2, config.seed, pad_id=2)
    batches = evaluation_batches(reading, num_samples=16)
    total, targets = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            pattern = Patterns.of(batch).own
            total += model(batch.tokens, batch.positions, pattern, batch.labels).cross_entropy_sum.item()
            targets += batch.num_targets
    return total / targets


def last_evaluation(folder) -> float:
    return events_of(folder, "evaluate")[-1]["loss"]


def test_the_weights_taken_from_a_checkpoint_are_those_that_were_evaluated(straight, dataset):
    state = load_weights(latest_checkpoint(straight))
    assert {weight.dtype for weight in state.values()} == {torch.float32}
    assert held_out_loss(long_config(dataset), state) == pytest.approx(last_evaluation(straight), abs=1e-6)


@pytest.mark.parametrize(("stage", "precision"), [(2, "bf16"), (3, "fp32")])
def test_a_killed_run_goes_on_from_its_checkpoint_bit_for_bit(dataset, tmp_path, stage, precision):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    model = {"tie_embeddings": stage == 3}
    config = tiny_config(dataset, model=model, training={"zero_stage": stage, "precision": precision})
    save_config(config, whole)
    run_to_end(whole)
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints" / "step-00000020")
    (killed / "checkpoints" / "latest").write_text("step-00000010\n")
    (killed / "checkpoints" / ".tmp-step-00000020").mkdir()
    run_to_end(killed)
    assert len(events_of(killed, "resume")) == 1
    assert exact(killed) == exact(whole)
    assert same_weights(killed, whole)
    assert not list((killed / "checkpoints").glob(".tmp*"))
    state = load_weights(latest_checkpoint(killed))
    close = 1e-6 if precision == "fp32" else 3e-3
    assert held_out_loss(config, state) == pytest.approx(last_evaluation(killed), abs=close)


def test_the_others_end_soon_when_a_rank_is_killed(dataset, tmp_path):
    folder = save_config(tiny_config(dataset, training={"steps": 100_000}), tmp_path / "run")
    ranks = start_ranks(folder, 2)
    wait_for_step(folder, 2, ranks)
    ranks[1].kill()
    started = time.monotonic()
    (code, error), _ = finish(ranks, timeout=180)
    assert code not in (EXIT_DONE, EXIT_STOPPED, EXIT_MISTAKE), error
    assert time.monotonic() - started < 60
    assert events_of(folder, "error")[0]["exit_code"] == code


def test_a_full_disk_is_one_sentence_and_leaves_the_checkpoints_before_it(straight, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000060")
    (folder / "checkpoints" / "latest").write_text("step-00000040\n")
    before = (folder / "checkpoints" / "step-00000040" / "checksums.json").read_bytes()
    limit = 100_000  # bytes a file may have: enough for lines of metrics, too little for weights

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    for code, error in finish(start_ranks(folder, 2, preexec=fill)):
        assert code == EXIT_MISTAKE, error
        last = error.strip().splitlines()[-1]
        assert last.startswith(f"error: {folder}")
        assert "the checkpoint could not be written" in last and "untouched" in last
        assert "Traceback" not in error
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["latest", "step-00000040"]
    assert (folder / "checkpoints" / "latest").read_text() == "step-00000040\n"
    assert (folder / "checkpoints" / "step-00000040" / "checksums.json").read_bytes() == before
    assert "could not be written" in events_of(folder, "error")[-1]["message"]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(straight, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    weights = folder / "checkpoints" / "step-00000060" / "part-00001.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    run_to_end(folder)
    damaged = events_of(folder, "damaged")[0]
    assert damaged["checkpoint"] == "step-00000060"
    assert "part-00001.safetensors has another checksum" in damaged["faults"][0]
    assert damaged["reason"] == f"checkpoint step-00000060 is damaged and was passed over: {damaged['faults'][0]}"
    assert events_of(folder, "resume")[0]["step"] == 40
    assert exact(folder) == exact(straight)
    assert same_weights(folder, straight)


def test_another_number_of_ranks_and_zero_stage_goes_on_with_the_same_samples_and_losses(straight, dataset, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000060")
    (folder / "checkpoints" / "latest").write_text("step-00000040\n")
    config = long_config(dataset)
    save_config(config.model_copy(update={"training": config.training.model_copy(update={"zero_stage": 3})}), folder)
    results = finish(start_ranks(folder, 1))
    assert [code for code, _ in results] == [EXIT_DONE], results
    (event,) = events_of(folder, "resharded")
    assert event["from"] == {"world_size": 2, "zero_stage": 2, "tensor": 1, "context": 1}
    assert event["to"] == {"world_size": 1, "zero_stage": 3, "tensor": 1, "context": 1}
    same = ("step", "lr", "samples_consumed", "tokens_consumed", "documents_cut", "padding")
    for line, expected in zip(steps_of(folder), steps_of(straight), strict=True):
        assert [line[name] for name in same] == [expected[name] for name in same]
        assert [line[name] for name in ("loss", "grad_norm")] == pytest.approx(
            [expected["loss"], expected["grad_norm"]], abs=1e-5
        )
    assert last_evaluation(folder) == pytest.approx(last_evaluation(straight), abs=1e-5)


def test_another_dataset_is_refused_in_one_sentence(straight, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    save_config(long_config(write_dataset(tmp_path / "other", seed=1)), folder)
    for code, error in finish(start_ranks(folder, 2)):
        assert code == EXIT_MISTAKE
        assert "the checkpoint was made with data" in error.strip().splitlines()[-1]
    errors = events_of(folder, "error")
    assert errors[0]["exit_code"] == EXIT_MISTAKE
    assert len(events_of(folder, "resume")) == 0


def test_the_worker_names_what_the_environment_lacks(dataset, tmp_path, monkeypatch, capsys):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    folder = save_config(tiny_config(dataset), tmp_path)
    assert main([str(folder)]) == EXIT_MISTAKE
    assert capsys.readouterr().err.startswith("error: RANK: not set in the environment")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("name: [", "not valid YAML"),
        ("name: run\n", "tokenizer: Field required"),
        ("- 1\n", "valid dictionary"),
    ],
)
def test_a_broken_config_is_one_sentence(tmp_path, text, words):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)
    assert is_mistake(caught.value)
