"""The whole grid of shapes and objectives: what has a meaning trains on real text, what has none is refused."""

import itertools
import json
import statistics

import pytest
from pydantic import ValidationError

from data_pipeline.reading.grid import OBJECTIVES, SHAPES
from tests.training.runs import save_config, tiny_config, torchrun

VALID = {
    "causal": {"next_token", "prefix_lm", "span_corruption", "ul2", "blank_infilling"},
    "prefix": {"prefix_lm", "span_corruption", "ul2", "blank_infilling"},
    "encoder": {"masked_lm", "sentence_pairs"},
    "encdec": {"prefix_lm", "span_corruption", "ul2", "blank_infilling"},
}
MIXTURE = {"name": "mixture", "parts": [{"name": "next_token"}, {"name": "ul2", "weight": 2}]}
STEPS = 30


def config_of(dataset, shape: str, objective: dict):
    return tiny_config(
        dataset,
        model={"shape": shape, "d_model": 64, "d_ff": 128},
        objective=objective,
        optimizer={"lr": 1e-2, "betas": (0.9, 0.95)},
        training={
            "steps": STEPS,
            "sequence_length": 64,
            "micro_batch_size": 4,
            "zero_stage": 3 if shape == "encdec" else 2,
        },
        evaluation={"interval_steps": STEPS, "num_samples": 8},
        checkpoint={"interval_steps": STEPS},
    )


def test_every_pair_that_means_something_trains_on_two_ranks(real_dataset, tmp_path):
    runs = {
        f"{shape}-{name}": save_config(config_of(real_dataset, shape, {"name": name}), tmp_path / f"{shape}-{name}")
        for shape, names in VALID.items()
        for name in sorted(names)
    }
    runs["prefix-mixture"] = save_config(config_of(real_dataset, "prefix", MIXTURE), tmp_path / "prefix-mixture")
    done = torchrun(2, "-m", "tests.training.grid_ranks", *map(str, runs.values()))
    assert done.returncode == 0, done.stderr[:6000]
    for name, folder in runs.items():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        assert len(losses) == STEPS, name
        assert statistics.mean(losses[-5:]) < losses[0] - 1, f"{name}: {losses[0]} to {losses[-5:]}"
        evaluation = lines[-1]["evaluation"]
        assert evaluation["loss"] < losses[0] - 1, name
        assert all(line["tokens_left_out"] >= 0 and 0 <= line["padding"] < 0.9 for line in lines if "loss" in line)
    assert set(evaluation["objectives"]) == {"next_token", "ul2"}, "a mixture is evaluated by its parts too"


@pytest.mark.parametrize(("shape", "name"), itertools.product(SHAPES, OBJECTIVES))
def test_every_other_pair_is_refused_with_what_would_work(shape, name):
    if name == "mixture" or name in VALID[shape]:
        return
    with pytest.raises(ValidationError, match=f"objective.name: {name}") as refused:
        config_of("any", shape, {"name": name})
    sentence = str(refused.value)
    assert f"{shape} model" in sentence
    assert all(useful in sentence for useful in VALID[shape]), "it lists the objectives of this shape"
