"""Evaluations at their interval, in metrics.jsonl, TensorBoard and events.jsonl (evaluation.py does them)."""

from collections.abc import Mapping

from training.engine import Engine
from training.evaluation import Evaluator
from training.metrics import MetricsWriter
from training.parts.part import Moment, Part, Run
from training.phases import Phase


class Evaluating(Part):
    """Evaluates every `evaluation.interval_steps` and after the last step of the run."""

    def __init__(self, run: Run, engine: Engine, evaluators: Mapping[str, Evaluator], writer: MetricsWriter | None):
        """The first evaluator is that of the run's own objective; only rank 0 has a writer."""
        self.run, self.engine, self.evaluators, self.writer = run, engine, evaluators, writer

    def reads(self, moment: Moment) -> bool:
        return bool(self.evaluators) and (moment.done or moment.due(self.run.config.evaluation.interval_steps))

    def after_step(self, moment: Moment) -> None:
        if not self.reads(moment):
            return
        self.run.world.watch.beat(Phase.EVALUATION)
        results = {name: evaluator.run(self.engine) for name, evaluator in self.evaluators.items()}
        own, *others = results
        result = results[own]
        if self.writer:
            self.writer.evaluation(moment.step, result, {name: results[name] for name in others})
        facts = {"loss": result.loss, "unigram_entropy": result.unigram_entropy, "targets": result.targets}
        losses = {"losses": {name: results[name].loss for name in others}} if others else {}
        seconds = sum(each.seconds for each in results.values())
        self.run.events.write("evaluate", step=moment.step, **facts, **losses, seconds=seconds)
        self.run.world.watch.beat(Phase.STEP)
