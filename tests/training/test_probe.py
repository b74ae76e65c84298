"""The loss of a fixed batch, kept with a checkpoint."""

import dataclasses

import pytest

from tests.training.runs import tiny_config
from tests.training.stand_ins import OneWeight, run_in
from tests.training.step_ranks import batches_of
from training.probe import Probe, Spoilt
from training.state.identity import RunIdentity


@pytest.fixture
def probe_of(dataset, tmp_path):
    """Function (loss, world size that wrote it) -> the probe of an engine that computes this loss."""
    config = tiny_config(dataset)
    with batches_of(config, 0, 1) as loader:
        batch = next(loader)[0]

    def probe(loss: float, world_size: int = 1) -> Probe:
        run = dataclasses.replace(run_in(tmp_path, config), identity=RunIdentity(world_size, 2, "fp32", {}, "", {}, {}))
        return Probe(run, OneWeight(1, [loss] * 9), batch)  # type: ignore[arg-type]

    return probe


def test_the_same_bits_are_no_news(probe_of):
    probe_of(2.0).check(probe_of(2.0)(), "step-00000010")


def test_another_last_bit_is_told(probe_of):
    with pytest.raises(Spoilt, match="step-00000010: its weights give another loss than when they were saved"):
        probe_of(2.0).check(probe_of(2.0 + 2**-22)(), "step-00000010")


def test_what_other_ranks_or_nobody_computed_says_nothing(probe_of):
    probe_of(2.0).check(probe_of(3.0, world_size=2)(), "step-00000010")
    probe_of(2.0).check("", "step-00000010")
