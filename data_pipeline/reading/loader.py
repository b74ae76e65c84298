"""Turns a dataset into the batches of one rank, prepared ahead in a background thread.

    counter -> order -> dataset.read -> fit -> objective -> pack -> micro-batches of a global batch -> buffer -> loop

All of a loader's state is `samples_consumed`: a new one that starts there goes on exactly where this one stopped.
Global batch b is the same set of samples for any number of ranks and any micro batch.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from common.mistakes import Mistake
from data_pipeline.config import ObjectiveConfig
from data_pipeline.manifest import Manifest
from data_pipeline.reading.budget import fitted, sample_lengths
from data_pipeline.reading.dataset import Documents, TokenDataset
from data_pipeline.reading.draws import piece_keys
from data_pipeline.reading.grid import objective_for
from data_pipeline.reading.objectives import NO_EXAMPLES, NextToken
from data_pipeline.reading.order import SampleOrder
from data_pipeline.reading.packing import LAYOUTS, Buffers, PackedBatch, Row, pack_layout
from data_pipeline.vocabulary import Vocabulary

LOCATED_AT_ONCE = 1024
"""Samples whose places and documents are looked up together."""
SAMPLES_AT_ONCE = 64
"""Samples read and laid out together; more would leave the CPU's cache."""


class BatchMaker:
    """Makes packed batches of samples of a dataset; the same samples and counters always give the same batches.

    Raises ValueError when the objective means nothing for the shape, when rows are too short for it, or when the
    tokenizer lacks a piece that it needs. With `keep_tail` the last sample of the split may be shorter.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        *,
        objective: ObjectiveConfig,
        shape: str,
        sequence_length: int,
        target_length: int | None,
        micro_batch_size: int,
        pad_id: int | None,
        seed: int,
        keep_tail: bool = False,
    ):
        manifest = Manifest.load(path)
        self.vocabulary = Vocabulary.of(manifest)
        self._pad_id = self.vocabulary.pad if pad_id is None else pad_id
        if not 0 <= self._pad_id < manifest.vocab_size:
            raise Mistake(f"{path}: pad id {pad_id} is not in its vocabulary of {manifest.vocab_size}")
        self._objective = objective_for(objective, shape, self.vocabulary)
        self.lengths = sample_lengths(
            objective, shape, sequence_length, target_length, self.vocabulary, manifest.mean_document_length
        )
        self._always_fits = isinstance(self._objective, NextToken)
        overlap = int(self._always_fits)
        self.dataset = TokenDataset(
            path, split, self.lengths.window, overlap=overlap, keep_tail=keep_tail, manifest=manifest
        )
        self.micro_batch_size = micro_batch_size
        self.shape = shape
        self._seed = seed
        row = self.lengths.target_row or self.lengths.row
        self._buffers = Buffers(micro_batch_size * row)
        self._encoder_buffers = Buffers(micro_batch_size * self.lengths.row, 2) if shape == "encdec" else None

    def __call__(self, counters: np.ndarray, samples: np.ndarray) -> Iterator[PackedBatch]:
        """Packs samples, int64 [B], drawn by `counters`, int64 [B], micro_batch_size to a batch.

        Several micro-batches are read and laid out together, since numpy's fixed costs are per call.
        """
        located = self.dataset.locate(samples)
        step = max(1, SAMPLES_AT_ONCE // self.micro_batch_size) * self.micro_batch_size
        for start in range(0, len(samples), step):
            stop = min(start + step, len(samples))
            yield from self._pack(self.dataset.read(located, start, stop), counters[start:stop])

    def batch(self, counters: np.ndarray, samples: np.ndarray) -> PackedBatch:
        """One batch of at most micro_batch_size samples, which may be none at all."""
        if not len(samples):
            layout = LAYOUTS[self.shape](NO_EXAMPLES, self.vocabulary.bos)
            return pack_layout(layout, np.zeros(0, bool), self._pad_id, self._row())
        return next(self(counters, samples))

    def _row(self) -> Row:
        return Row(self._buffers.take(), self._encoder_buffers.take() if self._encoder_buffers else None)

    def _pack(self, documents: Documents, counters: np.ndarray) -> Iterator[PackedBatch]:
        keys = piece_keys(self._seed, counters, documents.num_pieces)
        left_out = np.zeros(len(counters), np.int64)
        if not self._always_fits:
            documents, keys, left_out = fitted(
                self._objective, documents, keys, self.shape, self.lengths, self.vocabulary
            )
        examples = self._objective(documents, keys)
        layout = LAYOUTS[self.shape](examples, self.vocabulary.bos)
        num_examples, is_cut = documents.num_pieces, documents.is_cut
        if examples.pieces is not None:
            sample = np.repeat(np.arange(len(num_examples)), num_examples)[examples.pieces]
            num_examples, is_cut = np.bincount(sample, minlength=len(num_examples)), is_cut[examples.pieces]
        begins = range(0, len(counters), self.micro_batch_size)
        sizes, left_out = np.add.reduceat(num_examples, begins), np.add.reduceat(left_out, begins)
        cuts = np.split(is_cut, np.cumsum(sizes)[:-1])
        for part, is_cut, count in zip(layout.split(sizes), cuts, left_out.tolist(), strict=True):
            yield pack_layout(part, is_cut, self._pad_id, self._row(), count)


class Loader:
    """Endless iterator over global batches: each item is the list of micro-batches that this rank contributes.

    Use it as a context manager, or call `close`. `sequence_length` is the row of a decoder or encoder, in encdec of
    the encoder, whose decoder has rows of `target_length` (empty: what the objective makes of a full row). An empty
    `pad_id` is the tokenizer's own. Raises ValueError when the sizes do not divide, when the dataset is not there,
    when it holds less than one global batch, or when the objective does not go with it or with the shape; errors of
    the thread are raised by `next`.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        *,
        objective: ObjectiveConfig,
        shape: str,
        sequence_length: int,
        micro_batch_size: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        target_length: int | None = None,
        pad_id: int | None = None,
        samples_consumed: int = 0,
        prefetch: int = 2,
        shuffle: bool = True,
        pin: bool = False,
    ):
        if global_batch_size % (micro_batch_size * world_size):
            raise Mistake(
                f"training.global_batch_size: {global_batch_size} is not a multiple of micro_batch_size "
                f"{micro_batch_size} times {world_size} ranks"
            )
        maker = BatchMaker(
            path,
            split,
            objective=objective,
            shape=shape,
            sequence_length=sequence_length,
            target_length=target_length,
            micro_batch_size=micro_batch_size,
            pad_id=pad_id,
            seed=seed,
        )
        dataset = maker.dataset
        if len(dataset) < global_batch_size:
            raise Mistake(
                f"{path}: split {split} has {dataset.num_tokens} tokens, {len(dataset)} samples of sequence_length "
                f"{sequence_length}; a global batch needs {global_batch_size}, so add text or make the batch smaller"
            )
        self.lengths = maker.lengths
        self.fingerprint = dataset.manifest.fingerprint
        self.num_samples = len(dataset)
        self.samples_consumed = samples_consumed
        self._global_batch_size = global_batch_size
        order = SampleOrder(len(dataset), seed) if shuffle else None
        batches = _batches_of_rank(maker, order, samples_consumed, global_batch_size, rank, world_size, pin)
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


def _closed() -> Iterator[list[PackedBatch]]:
    raise RuntimeError("the loader is closed")
    yield


def _batches_of_rank(
    maker: BatchMaker,
    order: SampleOrder | None,
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
        starts = counter + global_batch_size * np.arange(num_batches, dtype=np.int64) + rank * share
        counters = (starts[:, None] + np.arange(share)).ravel()
        samples = order(counters) if order else counters % len(maker.dataset)
        micro_batches = maker(counters, samples)
        for _ in range(num_batches):
            batches = list(islice(micro_batches, share // maker.micro_batch_size))
            yield [batch.pin() for batch in batches] if pin else batches
        counter += num_batches * global_batch_size
        # the first batch comes at once, later ones are looked up many at a time
        num_batches = max(1, min(2 * num_batches, LOCATED_AT_ONCE // share))


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
    path: str | Path,
    split: str = "validation",
    *,
    objective: ObjectiveConfig,
    shape: str,
    sequence_length: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    target_length: int | None = None,
    pad_id: int | None = None,
    num_samples: int | None = None,
    seed: int = 0,
) -> EvaluationBatches:
    """One pass over `num_samples` samples spread evenly over the split (all of them if empty or more than there are).

    Every rank gets the same number of batches; where samples run out they hold padding and no targets. The last
    sample of the split may be shorter than the others. Together the ranks see each chosen sample exactly once. Lengths
    and `pad_id` are as for `Loader`.
    Raises ValueError when the split holds no target at all.
    """
    maker = BatchMaker(
        path,
        split,
        objective=objective,
        shape=shape,
        sequence_length=sequence_length,
        target_length=target_length,
        micro_batch_size=micro_batch_size,
        pad_id=pad_id,
        seed=seed,
        keep_tail=True,
    )
    dataset = maker.dataset
    if not len(dataset):
        raise Mistake(
            f"{path}: split {split} has {dataset.num_tokens} tokens, nothing to evaluate on; "
            "add text or raise data.validation_fraction"
        )
    chosen = min(num_samples or len(dataset), len(dataset))
    samples = np.arange(chosen, dtype=np.int64) * len(dataset) // chosen
    return EvaluationBatches(maker, samples, rank, world_size)
