"""Loss on held-out samples, and what knowing nothing but token frequencies would score on the same targets."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence

import torch

from data_pipeline.reading.packing import PackedBatch
from training.distributed import World
from training.engine import Engine
from training.step import Patterns


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """Held-out figures of all ranks together."""

    loss: float
    """Cross-entropy in nats per target."""
    unigram_entropy: float
    """Entropy in nats of the targets' own frequencies: the best loss without any context."""
    targets: int
    """Tokens the loss was taken on."""
    seconds: float
    """Time it took."""

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where it does not fit a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def figures(self) -> dict[str, float]:
        """All of them by name."""
        return {
            "loss": self.loss,
            "unigram_entropy": self.unigram_entropy,
            "perplexity": self.perplexity,
            "targets": self.targets,
            "seconds": self.seconds,
        }


def unigram_entropy(histogram: torch.Tensor) -> float:
    """Entropy in nats of counts [V]; 0 for no counts."""
    counts = histogram.double()
    total = counts.sum()
    if total == 0:
        return 0.0
    shares = counts[counts > 0] / total
    return float(-(shares * shares.log()).sum())


class Evaluator:
    """Evaluates the same held-out batches every time; each rank holds its own, all equally many."""

    def __init__(self, batches: Sequence[PackedBatch], vocab_size: int, world: World):
        self.batches = list(batches)
        self.patterns = [Patterns.of(batch) for batch in self.batches]
        if world.device.type == "cuda":
            self.batches = [batch.pin() for batch in self.batches]
            self.patterns = [pattern.pin() for pattern in self.patterns]
        self.world = world
        labels = torch.cat([batch.labels for batch in self.batches] or [torch.zeros(0, dtype=torch.int64)])
        histogram = world.sum_tensor(torch.bincount(labels[labels >= 0], minlength=vocab_size))
        self.num_targets = int(histogram.sum())
        self.entropy = unigram_entropy(histogram)

    def run(self, engine: Engine) -> EvaluationResult:
        """Evaluates; all ranks call it together. The model is in training mode again afterwards."""
        started = time.perf_counter()
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        engine.module.eval()
        with torch.no_grad():
            for batch, pattern in zip(self.batches, self.patterns, strict=True):
                batch = batch.to(self.world.device, non_blocking=True)
                total += engine(batch, pattern.to(self.world.device, non_blocking=True))[1][0]
        engine.module.train()
        loss = self.world.sum([float(total)])[0] / self.num_targets
        return EvaluationResult(loss, self.entropy, self.num_targets, time.perf_counter() - started)


@dataclasses.dataclass(frozen=True)
class Evaluators:
    """All that a run is evaluated on."""

    objectives: Mapping[str, Evaluator] = dataclasses.field(default_factory=dict)
    """By objective, the run's own first; none when nothing is held out."""
    sources: Mapping[str, Evaluator] = dataclasses.field(default_factory=dict)
    """Of the run's own objective, by source."""
