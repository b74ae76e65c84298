"""The loop around steps: what it waits for, when it looks whether steps were sound, how it ends."""

import threading

import pytest
import torch

from tests.training.planes import in_threads
from tests.training.runs import steps_of, tiny_config
from tests.training.stand_ins import OneWeight, result_of, run_in
from tests.training.step_ranks import batches_of
from training import step as step_module
from training.distributed import World
from training.evaluation import Evaluators
from training.feed import Feeder
from training.guards import StopRequest
from training.guards_config import GuardsConfig
from training.loop import Trainer
from training.parts.saving import Saving
from training.schedule import learning_rate
from training.spikes import Guard
from training.state.identity import RunState
from training.step import run_step

PASSES = 8
WAITING = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__")
"""How a tensor's values come to the host."""


def refuse_to_wait(monkeypatch) -> None:
    """Makes everything raise by which this thread would wait for a device."""
    thread = threading.current_thread()
    for name in WAITING:
        original = getattr(torch.Tensor, name)

        def guarded(self, *arguments, _original=original, _name=name, **keywords):
            assert threading.current_thread() is not thread, f"the step waited for the device by Tensor.{_name}"
            return _original(self, *arguments, **keywords)

        monkeypatch.setattr(torch.Tensor, name, guarded)


class Impatient(OneWeight):
    """An engine that waits for its weight in each step."""

    def step(self, lr, hold_back=None):
        float(self.module.weight)
        return super().step(lr, hold_back)


def guard_of(**keys) -> Guard:
    """A guard of this process's steps."""
    return Guard(GuardsConfig(**keys), torch.device("cpu"))


def trainer_of(tmp_path, engine: OneWeight, guards: dict | None = None, **training) -> Trainer:
    """A trainer that saves nothing."""
    run = run_in(tmp_path, tiny_config("none", training=training, guards=guards or {}))
    trainer = Trainer(run, engine, Evaluators(), RunState(), None)  # type: ignore
    trainer.parts = [part for part in trainer.parts if not isinstance(part, Saving)]
    return trainer


@pytest.mark.parametrize("spikes", ["none", "skip"])
def test_no_step_waits_for_its_device(dataset, monkeypatch, spikes):
    world = World.alone()
    loader = batches_of(tiny_config(dataset), 0, 1)
    feeder = Feeder(loader, 3, world, lambda: False)
    engine, guard = OneWeight(PASSES), guard_of(spikes=spikes, min_steps=2)
    with monkeypatch.context() as patch:
        refuse_to_wait(patch)
        results = [run_step(engine, feeder.take(), 1e-3, world, "step", guard) for _ in range(3)]  # type: ignore
    feeder.close()
    loader.close()
    assert [result.loss for result in results] == [1.0] * 3
    assert float(engine.module.weight.detach()) == pytest.approx(-3e-3)


def test_the_test_above_would_notice(dataset, monkeypatch):
    loader = batches_of(tiny_config(dataset), 0, 1)
    feeder = Feeder(loader, 1, World.alone(), lambda: False)
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match=r"device by Tensor\.__float"):
        refuse_to_wait(patch)
        run_step(Impatient(PASSES), feeder.take(), 1e-3, World.alone(), "step", guard_of())  # type: ignore
    feeder.close()
    loader.close()


def test_between_two_lines_only_the_step_before_is_looked_at(dataset, tmp_path, monkeypatch):
    seen = []
    engine = OneWeight(PASSES)
    values = step_module.Reading.values

    def look(self):
        seen.append((engine.passes // PASSES, self.step))
        return values(self)

    begin = step_module.Reading.__init__

    def note(self, scalars):
        begin(self, scalars)
        self.step = engine.passes // PASSES

    monkeypatch.setattr(step_module.Reading, "values", look)
    monkeypatch.setattr(step_module.Reading, "__init__", note)
    trainer = trainer_of(tmp_path, engine, steps=10, log_interval=5)
    with StopRequest() as stop, batches_of(tiny_config(dataset), 0, 1) as loader:
        assert trainer.train(loader, stop)
    assert [line["step"] for line in steps_of(tmp_path)] == [5, 10]
    # after 1 nothing yet, after 2 the first, ...; a line needs its own step, and the one before it is looked at first
    assert seen == [(2, 1), (3, 2), (4, 3), (5, 4), (5, 5), (7, 6), (8, 7), (9, 8), (10, 9), (10, 10)]


@pytest.mark.parametrize("log_interval", [1, 100])
def test_a_loss_that_is_no_number_changes_no_weight_and_is_told_a_step_later_at_most(dataset, tmp_path, log_interval):
    losses = [2.0] * 2 * PASSES + [float("nan")]
    engine = OneWeight(PASSES, losses=losses)
    trainer = trainer_of(tmp_path, engine, guards={"skips_in_a_row": 0}, steps=10, log_interval=log_interval)
    sentence = r"step 3 \(samples 32 to 47\): the loss is nan \(rank 0\), no weight was changed"
    loader = batches_of(tiny_config(dataset), 0, 1)
    with StopRequest() as stop, loader, pytest.raises(ValueError, match=sentence):
        trainer.train(loader, stop)
    steps = [1, 2] if log_interval == 1 else [1, 2, 4]  # the third was held back
    assert engine.passes // PASSES == max(3, *steps) + 1  # once more for the report
    config = trainer.run.config
    lowered = sum(learning_rate(config.schedule, config.optimizer.lr, step, 10) for step in steps)
    assert float(engine.module.weight.detach()) == pytest.approx(-lowered)
    assert [line["step"] for line in steps_of(tmp_path)] == ([1, 2] if log_interval == 1 else [])


def test_every_rank_names_the_lowest_ranks_with_a_loss_that_is_no_number():
    def message(world: World) -> str:
        with pytest.raises(ValueError) as caught:
            result_of(float("nan"), own=float("nan") if world.rank % 2 else 1.0, held=True).check(world)
        return str(caught.value)

    messages = in_threads(20, message)
    assert len(set(messages)) == 1
    assert messages[0].startswith("step 1: the loss is nan (rank 1, 3, 5, 7, 9, 11, 13, 15 and 2 more)")


def test_a_finished_run_is_left_as_it_is(tmp_path):
    trainer = trainer_of(tmp_path, OneWeight(PASSES), steps=5)
    trainer.state = RunState(5, 80, 1)
    with StopRequest() as stop:
        assert trainer.train(iter(()), stop)
    assert trainer.state == RunState(5, 80, 1)
