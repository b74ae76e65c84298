"""Reading the weights of large checkpoints; test_checkpoints.py compares them with what was saved."""

import pytest
import torch

from tests.memory import peak_memory
from tests.training.state.ranks import IDENTITY
from training.state import loading, parts
from training.state.boxes import Box
from training.state.identity import RunState, dump_state
from training.state.index import index_of
from training.state.layout import replicated, sharded
from training.state.loading import stream_weights
from training.state.parts import part_name, write_part
from training.state.saving import seal

NUM_RANKS, NUM_PARAMETERS, SIZE = 4, 96, 500_000
MEBIBYTE = 2**20


def value(number: int) -> torch.Tensor:
    """The parameter of that number."""
    return torch.arange(SIZE, dtype=torch.float32).view(500, 1000) + number


def write(folder, stage):
    """183 MiB of weights and twice as much of moments, as four ranks write them."""
    boxes = [Box.whole(f"w{number}", (500, 1000)) for number in range(NUM_PARAMETERS)]
    layout = sharded(stage, NUM_RANKS, [boxes], [NUM_PARAMETERS * SIZE // NUM_RANKS]) if stage else replicated(boxes)
    per_rank, own = SIZE // NUM_RANKS, NUM_PARAMETERS // NUM_RANKS
    digests = {}
    for rank in range(NUM_RANKS):
        if stage == 3:
            flat = [value(n).flatten()[rank * per_rank :][:per_rank] for n in range(NUM_PARAMETERS)]
        else:
            flat = [value(n).flatten() for n in range(rank * own, (rank + 1) * own)]
        kinds = {"weight": flat, "exp_avg": flat, "exp_avg_sq": flat}
        digests[part_name(rank)] = write_part(folder / part_name(rank), kinds)
    seal(folder, digests, index_of(layout, list(kinds), 1, NUM_RANKS), dump_state(RunState(1), IDENTITY))


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_memory_does_not_grow_with_the_model_nor_open_files_with_the_ranks(stage, tmp_path, monkeypatch):
    write(tmp_path, stage)
    monkeypatch.setattr(loading, "BATCH_BYTES", 8 * MEBIBYTE)
    monkeypatch.setattr(parts, "MOST_OPEN", 2)
    count = 0
    with peak_memory() as peak:
        for number, (name, weight) in enumerate(stream_weights(tmp_path)):
            assert name == f"w{number}" and torch.equal(weight, value(number))
            count += 1
    assert count == NUM_PARAMETERS
    assert peak.growth < 48 * MEBIBYTE, f"{peak.growth / MEBIBYTE:.0f} MiB for 183 MiB of weights"
