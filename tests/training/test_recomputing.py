"""A step that is computed twice more."""

import pytest

from tests.training.runs import events_of, tiny_config
from tests.training.stand_ins import OneWeight, result_of, run_in
from tests.training.step_ranks import batches_of
from training.distributed import World
from training.parts.comparing import Corrupt
from training.parts.part import Moment
from training.parts.recomputing import Recomputing
from training.state.identity import RunState
from training.step import Patterns, StepInput, count

PASSES = 8


def recompute(dataset, folder, losses: list[float], step: int = 6) -> OneWeight:
    """What follows a step where every third is computed twice more, with these losses."""
    config = tiny_config(dataset, guards={"recompute_interval": 3})
    with batches_of(config, 0, 1) as loader:
        batches = next(loader)
    patterns = [Patterns.of(batch) for batch in batches]
    data = StepInput(batches, patterns, count(batches, patterns, World.alone()))
    engine = OneWeight(PASSES, losses)
    state = RunState(step, 16 * step, 900 * step)
    Recomputing(run_in(folder, config), engine).after_step(  # type: ignore[arg-type]
        Moment(state, result_of(), 1e-3, 0.1, False, False, data)
    )
    return engine


def test_the_same_bits_twice_are_no_news_and_change_nothing(dataset, tmp_path):
    engine = recompute(dataset, tmp_path, [2.0] * 2 * PASSES)
    assert (engine.passes, float(engine.module.weight.detach())) == (2 * PASSES, 0.0)
    assert recompute(dataset, tmp_path, [], step=7).passes == 0


def test_a_rank_that_computes_something_else_is_named(dataset, tmp_path):
    last_bit = [2.0] * (2 * PASSES - 1) + [2.0 + 2**-22]
    with pytest.raises(Corrupt, match=r"step 6: rank 0 on \S+ computes something else from the same batch"):
        recompute(dataset, tmp_path, last_bit)
    (event,) = events_of(tmp_path, "corrupt")
    assert (event["step"], event["ranks"]) == (6, [0])
