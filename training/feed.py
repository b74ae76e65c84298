"""Global batches for the loop, each counted over all ranks while the one before it is trained.

    loader -> (a thread) patterns, page-locked for a GPU -> its counts begin to travel -> step before it -> step

Whether a rank was asked to stop travels with the counts, so all ranks learn it at the same step: a stop that comes
during step n is told with the counts of n + 2, which set out when n + 1 begins, and n + 1 is the last step. Exchanges
begin in the thread of the loop alone, so that their order is the same on every rank.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from data_pipeline.reading.packing import PackedBatch
from model.config import ModelConfig
from training.distributed import World
from training.step import Patterns, StepCounts, StepInput, begin_count

Prepared = tuple[list[PackedBatch], list[Patterns]]


@dataclasses.dataclass(frozen=True)
class _Coming:
    """The batch of the next step."""

    prepared: Prepared
    counts: Callable[[], StepCounts]


class Feeder:
    """Gives a rank the inputs of `num_steps` steps; all ranks take them together.

    `model` says whether some layers have patterns of their own. What the loader gave ahead of the last step trained is
    forgotten: a run counts the samples that it trained on.
    """

    def __init__(
        self,
        loader: Iterable[list[PackedBatch]],
        num_steps: int,
        world: World,
        stop: Callable[[], bool],
        model: ModelConfig | None = None,
    ):
        self._batches, self._model = iter(loader), model
        self._world, self._stop = world, stop
        self.left = num_steps
        """Steps that are still to be taken."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feeder")
        self._ahead = self._prepare_one() if num_steps else None
        self._coming = self._begin() if num_steps else None
        self.waited = 0.0
        """Seconds that `take` last waited for data."""

    @property
    def stopping(self) -> bool:
        """Whether a rank was asked to stop before the next step; the same on every rank. False after the last one."""
        return self._coming is not None and self._coming.counts().stops > 0

    def take(self) -> StepInput:
        """What the next step takes; the counts of the one after it set out."""
        assert self._coming is not None, "there are no more steps"
        started = time.perf_counter()
        batches, patterns = self._coming.prepared
        data = StepInput(batches, patterns, self._coming.counts())
        self.left -= 1
        self._coming = self._begin() if self.left else None
        self.waited = time.perf_counter() - started
        return data

    def close(self) -> None:
        """Ends the thread, once the loader has given what it is asked for; close the loader afterwards."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> _Coming:
        assert self._ahead is not None
        batches, patterns = self._ahead.result()
        self._ahead = self._prepare_one() if self.left > 1 else None
        return _Coming((batches, patterns), begin_count(batches, patterns, self._world, self._stop()))

    def _prepare_one(self) -> "Future[Prepared]":
        return self._thread.submit(self._prepare)

    def _prepare(self) -> Prepared:
        batches = next(self._batches)
        patterns = [Patterns.of(batch, self._model) for batch in batches]
        if self._world.device.type == "cuda":
            patterns = [pattern.pin() for pattern in patterns]
        return batches, patterns
