"""A rank on a real GPU: python -m pytest -m gpu tests/training"""

import json
import shutil
from pathlib import Path

import pytest

from tests.training.runs import events_of, lone_rank, save_config, steps_of, tiny_config
from tests.training.step_ranks import SHAPES, config_of

pytestmark = pytest.mark.gpu

HEADS = {"d_model": 64, "num_heads": 4, "num_kv_heads": 4}
"""Heads of 16, which the kernels take."""


def train(folder: Path, *command: str, gpu: bool = True) -> Path:
    """Runs a folder on one rank, and looks at what it ran on."""
    lone_rank(*(command or ("training.worker", str(folder))), gpu=gpu)
    start = events_of(folder, "start")[-1]
    assert start["device"].startswith("cuda:0" if gpu else "cpu")
    assert start["collectives"] == ("nccl" if gpu else "gloo")
    return folder


def history(folder: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of each step."""
    return [(line["step"], line["loss"], line["grad_norm"]) for line in steps_of(folder)]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_killed_run_repeats_its_steps_bit_for_bit(dataset, tmp_path, stage):
    training = {"steps": 8, "precision": "bf16", "zero_stage": stage}
    config = tiny_config(dataset, model=HEADS, training=training, checkpoint={"interval_steps": 4, "keep": 9})
    straight = train(save_config(config, tmp_path / "straight"))
    assert events_of(straight, "start")[0]["attention"] in ("flash", "varlen")
    again = tmp_path / "again"
    shutil.copytree(straight, again)
    shutil.rmtree(again / "checkpoints" / "step-00000008")
    (again / "checkpoints" / "latest").write_text("step-00000004\n")
    train(again)
    assert events_of(again, "ready")[-1]["step"] == 4
    assert history(again) == history(straight)
    assert len(history(again)) == 8


@pytest.mark.parametrize("shape", ["causal", *SHAPES])
def test_every_shape_trains_in_fp32_as_on_a_cpu(dataset, tmp_path, shape):
    training = {"steps": 6}
    config = config_of(dataset, shape, **training) if shape in SHAPES else tiny_config(dataset, training=training)
    here = history(train(save_config(config, tmp_path / "gpu")))
    there = history(train(save_config(config, tmp_path / "cpu"), gpu=False))
    assert len(here) == 6
    for one, other in zip(here, there, strict=True):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-4)


@pytest.mark.parametrize("shape", ["causal", "encdec"])
@pytest.mark.parametrize("stage", [1, 3])
def test_nothing_of_ours_waits_for_the_gpu_between_two_lines(dataset, tmp_path, stage, shape):
    sections = {"training": {"steps": 9, "log_interval": 100, "precision": "bf16", "zero_stage": stage}}
    sections |= {"evaluation": {"interval_steps": None, "num_samples": 16}, "checkpoint": {"interval_steps": None}}
    if shape == "encdec":
        sections |= {"objective": {"name": "prefix_lm"}}
    config = tiny_config(dataset, model=HEADS | {"shape": shape, "positions": "rope"}, **sections)
    folder, output = save_config(config, tmp_path / "run"), tmp_path / "places.json"
    train(folder, "tests.training.watched_rank", str(folder), str(output))
    places = json.loads(output.read_text())
    between = [place for step in range(3, 9) for place in places.get(str(step), [])]
    print(stage, shape, {place: between.count(place) / 6 for place in sorted(set(between))})
    planted = [place for place in between if "watched_rank" in place]
    assert len(planted) == 6
    assert [place for place in between if place not in planted and "/deepspeed/" not in place] == []
