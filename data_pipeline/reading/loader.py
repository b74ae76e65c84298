"""Turns a dataset into the batches of one rank, prepared ahead in a background thread.

    counter -> order -> dataset.read -> fit -> objective -> pack -> micro-batches of a global batch -> buffer -> loop

All of a loader's state is `samples_consumed`: a new one that starts there goes on exactly where this one stopped.
Global batch b is the same set of samples for any number of ranks and any micro batch. A mix of sources is another
order: what it needs beside the counter is the list of mixes that the run had so far (mix.py).
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from common.mistakes import Mistake
from data_pipeline.reading.batches import BatchMaker, Reading
from data_pipeline.reading.corpus import Mixing, Source, order_of
from data_pipeline.reading.mix import MixedOrder
from data_pipeline.reading.order import SampleOrder
from data_pipeline.reading.packing import PackedBatch

LOCATED_AT_ONCE = 4096
"""Samples whose places and documents are looked up together: half of what that costs is per shard they lie in."""


class Loader:
    """Endless iterator over global batches: each item is the list of micro-batches that this rank contributes.

    Use it as a context manager, or call `close`. Raises ValueError when the sizes do not divide, when the dataset
    holds less than one global batch, or when the objective does not go with it or with the shape; errors of the thread
    are raised by `next`.
    """

    def __init__(
        self,
        reading: Reading,
        split: str = "train",
        *,
        global_batch_size: int,
        samples_consumed: int = 0,
        prefetch: int = 2,
        shuffle: bool = True,
        pin: bool = False,
        mixing: Mixing | None = None,
    ):
        if global_batch_size % (reading.micro_batch_size * reading.world_size):
            raise Mistake(
                f"training.global_batch_size: {global_batch_size} is not a multiple of micro_batch_size "
                f"{reading.micro_batch_size} times {reading.world_size} ranks"
            )
        maker = BatchMaker(reading, split)
        dataset = maker.dataset
        if len(dataset) < global_batch_size:
            raise Mistake(
                f"{reading.folder}: split {split} has {dataset.num_tokens} tokens, {len(dataset)} samples of "
                f"sequence_length {reading.sequence_length}; a global batch needs {global_batch_size}, "
                "so add text or make the batch smaller"
            )
        self.lengths = maker.lengths
        self.mix = mixed_order(mixing, reading, maker) if mixing else None
        """The order of a mix; None without one."""
        self.fingerprint = reading.manifest.fingerprint
        self.num_samples = len(dataset)
        self.samples_consumed = samples_consumed
        self._global_batch_size = global_batch_size
        order = self.mix or (SampleOrder(len(dataset), reading.seed) if shuffle else None)
        place = reading.rank, reading.world_size
        batches = _batches_of_rank(maker, order, samples_consumed, global_batch_size, *place, pin)
        self._source: Iterator[list[PackedBatch]] = _Prefetcher(batches, prefetch) if prefetch else batches

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> list[PackedBatch]:
        batches = next(self._source)
        self.samples_consumed += self._global_batch_size
        return batches

    def close(self) -> None:
        """Ends the background thread; nothing can be read afterwards."""
        if isinstance(self._source, _Prefetcher):
            self._source.close()
        self._source = _closed()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_source"):
            self.close()


def mixed_order(mixing: Mixing, reading: Reading, maker: BatchMaker) -> MixedOrder:
    """The order in which a run draws samples that `maker` makes batches of."""
    dataset = maker.dataset
    main = Source("", Path(reading.folder), reading.manifest)
    samples = dataset.samples_of_rows.tolist()
    of_main = int(dataset.samples_in(main.shards("train").num_tokens.sum()))
    return order_of(mixing, reading.sources, main, samples, of_main, dataset.window, reading.seed)


def _closed() -> Iterator[list[PackedBatch]]:
    raise RuntimeError("the loader is closed")
    yield


def counters_of(first: int, num_batches: int, global_batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """Counters of the samples that a rank contributes to global batches, the first of which begins at `first`.

    int64 [num_batches * global_batch_size / world_size], batch after batch; in each the ranks follow each other.
    """
    share = global_batch_size // world_size
    starts = first + global_batch_size * np.arange(num_batches, dtype=np.int64) + rank * share
    return (starts[:, None] + np.arange(share)).ravel()


def _batches_of_rank(
    maker: BatchMaker,
    order: SampleOrder | MixedOrder | None,
    counter: int,
    global_batch_size: int,
    rank: int,
    world_size: int,
    pin: bool,
) -> Iterator[list[PackedBatch]]:
    """The micro-batches of one rank, global batch after global batch, from a counter on."""
    share = global_batch_size // world_size
    num_batches = 1
    while True:
        counters = counters_of(counter, num_batches, global_batch_size, rank, world_size)
        samples = order(counters) if order else counters % len(maker.dataset)
        passes = order.passes(counters) if order and maker.dataset.passes_differ else None
        micro_batches = maker(counters, samples, passes)
        for _ in range(num_batches):
            batches = list(islice(micro_batches, share // maker.micro_batch_size))
            yield [batch.pin() for batch in batches] if pin else batches
        counter += num_batches * global_batch_size
        # the first batch comes at once, later ones are looked up many at a time, but none beyond the last there is
        left = (order.end - counter) // global_batch_size if isinstance(order, MixedOrder) else num_batches * 2
        num_batches = max(1, min(2 * num_batches, LOCATED_AT_ONCE // share, left))


class _Prefetcher:
    """Runs an iterator in a daemon thread, at most `depth` items ahead of its consumer."""

    def __init__(self, items: Iterator, depth: int):
        self._buffer = _Buffer(depth)
        self._thread = threading.Thread(target=self._buffer.fill, args=(items,), name="loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> "_Prefetcher":
        return self

    def __next__(self):
        return self._buffer.take()

    def close(self) -> None:
        """Stops the thread and waits for it."""
        self._buffer.stop()
        if self._thread is not threading.current_thread():
            self._thread.join()


class _Buffer:
    """A bounded queue that can be stopped from the consumer's end; the thread holds it and nothing else."""

    def __init__(self, depth: int):
        self._depth = depth
        self._items: deque = deque()
        self._error: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()

    def fill(self, items: Iterator) -> None:
        """Puts items in as long as there are any and nobody stops it; what they raise goes to the consumer."""
        try:
            for item in items:
                if not self._put(item):
                    return
            self._fail(StopIteration())
        except BaseException as error:
            self._fail(error)

    def take(self):
        """The next item; waits for it, or raises what the thread raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._error)
            if not self._items:
                assert self._error is not None
                raise self._error
            item = self._items.popleft()
            self._changed.notify_all()
        return item

    def stop(self) -> None:
        """Makes the thread end after the item it is working on."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _put(self, item) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._depth or self._stopped)
            self._items.append(item)
            self._changed.notify_all()
        return not self._stopped

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()


class EvaluationBatches(Sequence[PackedBatch]):
    """The batches of one rank over given samples, made anew each time they are asked for."""

    def __init__(self, maker: BatchMaker, samples: np.ndarray, rank: int, world_size: int):
        self.num_samples = len(samples)
        self.lengths = maker.lengths
        self._maker = maker
        self._samples = samples
        self._rank = rank
        self._stride = maker.micro_batch_size * world_size

    def __len__(self) -> int:
        return -(-self.num_samples // self._stride)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[index] for index in range(*number.indices(len(self)))]
        size = self._maker.micro_batch_size
        start = range(len(self))[number] * self._stride + self._rank * size
        samples = self._samples[start : start + size]
        return self._maker.batch(samples, samples)


def evaluation_batches(
    reading: Reading, split: str = "validation", *, num_samples: int | None = None
) -> EvaluationBatches:
    """One pass over `num_samples` samples spread evenly over the split (all of them if empty or more than there are).

    Every rank gets the same number of batches; where samples run out they hold padding and no targets. The last
    sample of the split may be shorter than the others. Together the ranks see each chosen sample exactly once.
    Raises ValueError when the split holds no target at all.
    """
    maker = BatchMaker(reading, split, keep_tail=True)
    dataset = maker.dataset
    if not len(dataset):
        raise Mistake(
            f"{reading.folder}: split {split} has {dataset.num_tokens} tokens, nothing to evaluate on; "
            "add text or raise data.validation_fraction"
        )
    chosen = min(num_samples or len(dataset), len(dataset))
    samples = np.arange(chosen, dtype=np.int64) * len(dataset) // chosen
    return EvaluationBatches(maker, samples, reading.rank, reading.world_size)
