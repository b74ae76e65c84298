"""The run: steps until the last one, with metrics, evaluations, checkpoints and a clean stop in between.

loader -> train_step -> meter, metrics -> evaluate? -> save? -> stop? -> loader ...
"""

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from data_pipeline.reading.packing import PackedBatch
from model.flops import train_flops
from training.config import RunConfig
from training.distributed import World
from training.engine import Engine
from training.evaluation import Evaluator
from training.events import EventLog
from training.guards import HangWatch, StopRequest
from training.hardware import memory_gb
from training.metrics import Meter, MetricsWriter
from training.schedule import learning_rate
from training.state.folder import delete_superseded
from training.state.identity import RunIdentity, RunState
from training.state.saving import save
from training.step import StepResult, train_step


@dataclasses.dataclass(frozen=True)
class Run:
    """What all parts of a run share."""

    config: RunConfig
    """Its configuration."""
    folder: Path
    """Where its files go."""
    world: World
    """This process among its peers."""
    identity: RunIdentity
    """What its checkpoints belong to."""
    vocab_size: int
    """Rows of the embedding."""
    events: EventLog
    """Its diary."""


class Trainer:
    """Trains from `state` on; rank 0 writes metrics, events and what checkpoints share."""

    def __init__(
        self, run: Run, engine: Engine, evaluators: Mapping[str, Evaluator], state: RunState, peak: float | None
    ):
        self.run, self.engine, self.evaluators, self.state = run, engine, evaluators, state
        self.meter = Meter(run.world.size, peak)
        self.metrics = MetricsWriter(run.folder, state.step) if run.world.is_main else None
        self.watch = HangWatch(run.config.training.hang_minutes)

    def train(self, loader: Iterable[list[PackedBatch]], stop: StopRequest) -> bool:
        """Trains to the last step; False when a signal to any rank ended it early. Either way its state is saved.

        A signal that came before the first step ends it there: what was resumed is saved already.
        """
        num_steps = self.run.config.training.steps
        self.watch.beat()
        stopping = self.state.step < num_steps and self.run.world.max([bool(stop)])[0] > 0
        batches = iter(loader)
        while self.state.step < num_steps and not stopping:
            stopping = self._advance(batches, stop)
        if stopping:
            self.run.events.write("stop", step=self.state.step, signal=stop.signal or "on another rank")
        self.watch.stop()
        if self.metrics:
            self.metrics.close()
        return self.state.step == num_steps

    def _advance(self, batches: Iterator[list[PackedBatch]], stop: StopRequest) -> bool:
        """Does a step and what is due after it; True when a rank was asked to stop before the last step."""
        config, watch = self.run.config, self.watch
        started = time.perf_counter()
        micro_batches = next(batches)
        waited = time.perf_counter() - started
        result = self._step(micro_batches, bool(stop))
        self._log(result, waited)
        done = self.state.step == config.training.steps
        watch.beat()
        if done or _due(self.state.step, config.evaluation.interval_steps):
            self._evaluate()
        watch.beat()
        stopping = result.counts.stops > 0 and not done
        if done or stopping or _due(self.state.step, config.checkpoint.interval_steps):
            self._save()
        watch.beat()
        return stopping

    def _step(self, batches: list[PackedBatch], stop: bool) -> StepResult:
        config, state = self.run.config, self.state
        size = config.training.global_batch_size
        step = state.step + 1
        lr = learning_rate(config.schedule, config.optimizer.lr, step, config.training.steps)
        first = state.samples_consumed
        where = f"step {step} (samples {first} to {first + size - 1})"
        result = train_step(self.engine, batches, lr, self.run.world, stop=stop, where=where)
        counts = result.counts
        self.state = RunState(step, first + size, state.tokens_consumed + counts.tokens + counts.encoder_tokens)
        return result

    def _log(self, result: StepResult, waited: float) -> None:
        run, step = self.run, self.state.step
        counts = result.counts
        self.meter.add(result, waited, train_flops(run.config.model, run.vocab_size, counts.work))
        if not (_due(step, run.config.training.log_interval) or step == run.config.training.steps or counts.stops):
            return
        memory = run.world.max([memory_gb(run.world.device)])[0]
        figures = self.meter.line()
        if self.metrics:
            lr = learning_rate(run.config.schedule, run.config.optimizer.lr, step, run.config.training.steps)
            totals = {
                "samples_consumed": self.state.samples_consumed,
                "tokens_consumed": self.state.tokens_consumed,
                "memory_gb": memory,
                "time": time.time(),
            }
            self.metrics.training({"step": step, **figures, "lr": lr, **totals})

    def _evaluate(self) -> None:
        """The first evaluator is that of the run's own objective."""
        results = {name: evaluator.run(self.engine) for name, evaluator in self.evaluators.items()}
        if not results:
            return
        own, *others = results
        result = results[own]
        if self.metrics:
            self.metrics.evaluation(self.state.step, result, {name: results[name] for name in others})
        facts = {"loss": result.loss, "unigram_entropy": result.unigram_entropy, "targets": result.targets}
        losses = {"losses": {name: results[name].loss for name in others}} if others else {}
        seconds = sum(each.seconds for each in results.values())
        self.run.events.write("evaluate", step=self.state.step, **facts, **losses, seconds=seconds)

    def _save(self) -> None:
        run, started = self.run, time.perf_counter()
        if self.metrics:
            self.metrics.flush()
        folder = save(self.engine, run.folder, self.state, run.identity, run.world)
        seconds = time.perf_counter() - started
        run.events.write("save", step=self.state.step, path=os.path.relpath(folder, run.folder), seconds=seconds)
        if run.world.is_main:
            keep = run.config.checkpoint
            for gone in delete_superseded(run.folder, keep.keep, keep.keep_every_steps):
                run.events.write("delete", path=os.path.relpath(gone, run.folder))


def _due(step: int, interval: int | None) -> bool:
    return interval is not None and step % interval == 0
