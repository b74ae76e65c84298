"""Evaluations at their interval, in metrics.jsonl, TensorBoard and events.jsonl (evaluation.py does them)."""

from collections.abc import Mapping

from training.engine import Engine
from training.evaluation import EvaluationResult, Evaluator, Evaluators
from training.metrics import MetricsWriter
from training.parts.part import Moment, Part, Run
from training.phases import Phase


class Evaluating(Part):
    """Evaluates every `evaluation.interval_steps` and after the last step of the run."""

    def __init__(self, run: Run, engine: Engine, evaluators: Evaluators, writer: MetricsWriter | None):
        """Only rank 0 has a writer."""
        self.run, self.engine, self.evaluators, self.writer = run, engine, evaluators, writer

    def reads(self, moment: Moment) -> bool:
        return bool(self.evaluators.objectives) and (
            moment.done or moment.due(self.run.config.evaluation.interval_steps)
        )

    def after_step(self, moment: Moment) -> None:
        if not self.reads(moment):
            return
        self.run.world.watch.beat(Phase.EVALUATION)
        others = self._run(self.evaluators.objectives)
        result = others.pop(next(iter(others)))
        sources = self._run(self.evaluators.sources)
        if self.writer:
            self.writer.evaluation(moment.step, result, others, sources)
        facts = {"loss": result.loss, "unigram_entropy": result.unigram_entropy, "targets": result.targets}
        told = {"losses": others, "source_losses": sources}
        losses = {key: {name: of.loss for name, of in group.items()} for key, group in told.items() if group}
        seconds = sum(each.seconds for each in (result, *others.values(), *sources.values()))
        self.run.events.write("evaluate", step=moment.step, **facts, **losses, seconds=seconds)
        self.run.world.watch.beat(Phase.STEP)

    def _run(self, evaluators: Mapping[str, Evaluator]) -> dict[str, EvaluationResult]:
        return {name: evaluator.run(self.engine) for name, evaluator in evaluators.items()}
