"""The run: steps until the last one, and parts of the trainer that do everything else between them.

feeder -> step -> metrics -> evaluation? -> checkpoint? -> stop? -> feeder ...
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from data_pipeline.reading.packing import PackedBatch
from training.engine import Engine
from training.evaluation import Evaluators
from training.feed import Feeder
from training.guards import StopRequest
from training.parts.collecting import Collecting
from training.parts.comparing import Comparing
from training.parts.evaluating import Evaluating
from training.parts.guarding import Guarding
from training.parts.metrics import Metrics
from training.parts.part import Moment, Part, Run
from training.parts.profiling import Profiling
from training.parts.recomputing import Recomputing
from training.parts.saving import Saving
from training.parts.watching import Watching
from training.probe import Probe
from training.schedule import learning_rate
from training.state.identity import RunState
from training.step import run_step


class Trainer:
    """Trains from `state` on; rank 0 writes metrics, events and what checkpoints share."""

    def __init__(
        self,
        run: Run,
        engine: Engine,
        evaluators: Evaluators,
        state: RunState,
        peak: float | None,
        probe: Probe | None = None,
    ):
        self.run, self.engine, self.state = run, engine, state
        saving = Saving(run, engine, others := usual_parts(run, engine, evaluators, state, peak), probe)
        self.parts: Sequence[Part] = [*others, saving]
        self.guarding = Guarding(run, engine, state.guards, saving.settle)
        self._unseen: Moment | None = None

    def train(self, loader: Iterable[list[PackedBatch]], stop: StopRequest) -> bool:
        """Trains to the last step; False when a signal to any rank ended it early. Either way its state is saved.

        A signal that came before the first step ends it there: what was resumed is saved already.
        """
        config = self.run.config
        left = max(0, config.training.steps - self.state.step)
        self._each(lambda part: part.begin())
        feeder = Feeder(loader, left, self.run.world, lambda: bool(stop), config.model)
        try:
            while feeder.left and not feeder.stopping:
                self._advance(feeder)
            if feeder.left:
                self.run.events.write("stop", step=self.state.step, signal=stop.signal or "on another rank")
            self._each(lambda part: part.finish())
        finally:
            feeder.close()
            self._each(lambda part: part.close())
        return not feeder.left

    def _advance(self, feeder: Feeder) -> None:
        """Does a step and what is due after it."""
        config, world, before = self.run.config, self.run.world, self.state
        step, first, size = before.step + 1, before.samples_consumed, config.training.global_batch_size
        self._each(lambda part: part.before_step(step))
        data = feeder.take()
        lr = learning_rate(config.schedule, config.optimizer.lr, step, config.training.steps)
        where = f"step {step} (samples {first} to {first + size - 1})"
        result = run_step(self.engine, data, lr, world, where, self.guarding.guard)
        tokens = data.counts.tokens + data.counts.encoder_tokens
        self.state = RunState(step, first + size, before.tokens_consumed + tokens, mix=before.mix)
        moment = self._look(Moment(self.state, result, lr, feeder.waited, not feeder.left, feeder.stopping, data))
        self._each(lambda part: part.after_step(moment))

    def _look(self, moment: Moment) -> Moment:
        """Looks whether steps were sound: the one before this, and this one if a part is about to use what it made.

        So a GPU is at most one step behind, and nothing that lasts is made of numbers that nobody looked at. What a
        checkpoint keeps of the guard is known then, too.
        """
        if self._unseen is not None:
            self.guarding.look(self._unseen)
        self._unseen = moment
        if any(part.reads(moment) for part in self.parts):
            self.guarding.look(moment)
            self._unseen = None
            self.state = dataclasses.replace(moment.state, guards=self.guarding.state())
            moment = dataclasses.replace(moment, state=self.state)
        moment.result.clock.stop()
        return moment

    def _each(self, hook: Callable[[Part], None]) -> None:
        for part in self.parts:
            hook(part)


def usual_parts(
    run: Run, engine: Engine, evaluators: Evaluators, state: RunState, peak: float | None
) -> Sequence[Part]:
    """The parts of a run in the order of their hooks, but for the one that saves, which may lose none of it."""
    metrics = Metrics(run, state.step, peak)
    return [
        Watching(run),
        Collecting(run.config.training.gc_interval),
        Profiling(run),
        Comparing(run, engine),
        Recomputing(run, engine),
        metrics,
        Evaluating(run, engine, evaluators, metrics.writer),
    ]
