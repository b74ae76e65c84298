"""What ranks hold when a run starts: the plain model's weights, made once, in little more memory than they keep."""

import json
import math

import pytest

from tests.training.runs import torchrun, write_dataset

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """What 1 and 2 ranks told, by their number."""
    folder = tmp_path_factory.mktemp("starts")
    data = write_dataset(folder / "data")
    found = {}
    for num_ranks in (1, 2):
        done = torchrun(num_ranks, "-m", "tests.training.start_ranks", str(data), str(folder))
        assert done.returncode == 0, done.stderr[-3000:]
        found[num_ranks] = json.loads((folder / f"start-{num_ranks}.json").read_text())
    return found


def held(numel, stage, precision, num_ranks):
    """Bytes a rank holds in training: weights, gradients, master weights, moments."""
    weights = (4 if precision == "fp32" else 2) / (num_ranks if stage == 3 else 1)
    gradients = 4 / (num_ranks if stage > 1 else 1)
    return numel * (weights + gradients + ((4 + 8) / num_ranks if stage else 8))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_every_rank_holds_the_drawn_or_imported_weights_bit_for_bit_at_every_stage_and_precision(starts, num_ranks):
    wrong = starts[num_ranks]["wrong"]
    assert len(wrong) == 2 * 7 + 2 * 3 + 3 + 5
    assert {name: weights for name, weights in wrong.items() if weights} == {}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_nothing_is_drawn_when_a_run_resumes(starts, num_ranks):
    resumed = [facts for name, facts in starts[num_ranks]["starts"].items() if "resumed" in name]
    assert resumed and all(facts["drawn"] == [0] * num_ranks for facts in resumed)


def test_ranks_share_the_drawing(starts):
    for name, facts in starts[2]["starts"].items():
        if "fresh" in name:
            assert sum(facts["drawn"]) < 1.05 * facts["numel"], name
            assert max(facts["drawn"]) < 0.75 * facts["numel"], name


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_start_takes_no_more_memory_than_the_rank_will_hold(starts, num_ranks):
    for name, facts in starts[num_ranks]["starts"].items():
        _, stage, precision, _ = name.split()
        limit = 1.25 * held(facts["numel"], int(stage), precision, num_ranks) + 60 * MEBIBYTE
        assert max(facts["peak"]) < limit, f"{name}: {math.ceil(max(facts['peak']) / MEBIBYTE)} MiB"
