"""Span corruption: our loader's objective and packing against the collator of Hugging Face's T5 example.

    python -m benchmarks.objectives [--quick] [--check] [--json FILE]

The peer is written anew here in the manner of `run_t5_mlm_flax.py` of Hugging Face transformers: numpy, a noise mask
drawn text by text by T5's rule with the numpy calls used there, everything else for the whole batch at once. The same
with cheaper calls stands in a row of its own, for information. All get the same texts as arrays in
memory, each of as many raw tokens as T5 takes for rows of 512 or 1,024 inputs, at density 0.15 and mean span length 3,
in batches of 64. Ours is timed twice:
- same work: from the texts to inputs, labels and what the decoder reads, which is all that the peer makes;
- and more: budgets, two packed rows with positions and document borders, int64 tensors, as the loader yields them.
The second has the goal. A figure is examples divided by CPU seconds of the process, the best of several rounds, ours
and the peer's in turn.
"""

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.table import Row, parser, show
from data_pipeline.reading.budget import SampleLengths, fitted
from data_pipeline.reading.dataset import Documents
from data_pipeline.reading.denoising import SpanCorruption, t5_lengths
from data_pipeline.reading.draws import piece_keys
from data_pipeline.reading.packing import Buffers, encdec_layout, pack_layout
from data_pipeline.reading.packing import Row as PackedRow
from data_pipeline.vocabulary import Vocabulary

DENSITY, SPAN = 0.15, 3.0
VOCAB_SIZE, NUM_SENTINELS, BATCH = 32000, 256, 64
PAD, BOS, EOS = 3, 1, 2
VOCABULARY = Vocabulary(VOCAB_SIZE, BOS, EOS, {"pad": PAD}, 4, NUM_SENTINELS)
GOAL = 5.0


# ---- the peer


def their_segments(num_items: int, num_segments: int) -> np.ndarray:
    """Random lengths of segments, with the calls of the peer: shuffle, pad, cumsum, unique."""
    is_first = np.arange(num_items - 1) < num_segments - 1
    np.random.shuffle(is_first)
    segment = np.cumsum(np.pad(is_first, [[1, 0]]))
    return np.unique(segment, return_counts=True)[1]


def lean_segments(num_items: int, num_segments: int) -> np.ndarray:
    """The same without the calls that cost most."""
    is_first = np.zeros(num_items, bool)
    is_first[1:num_segments] = True
    np.random.shuffle(is_first[1:])
    return np.bincount(np.cumsum(is_first), minlength=num_segments)


def random_spans_mask(length: int, segments: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """T5's noise mask of one text, bool [length]: visible and hidden spans in turn, visible first."""
    num_noise = min(max(int(np.round(length * DENSITY)), 1), length - 1)
    num_spans = max(int(np.round(num_noise / SPAN)), 1)
    noise, visible = segments(num_noise, num_spans), segments(length - num_noise, num_spans)
    starts = np.cumsum(np.reshape(np.stack([visible, noise], axis=1), [num_spans * 2]))[:-1]
    begins = np.zeros((length,), np.int8)
    begins[starts] = True
    return np.equal(np.cumsum(begins) % 2, 1)


class Collator:
    """Batches of texts of one length as a T5 model reads them: input_ids, labels and decoder_input_ids."""

    def __init__(self, segments: Callable[[int, int], np.ndarray]):
        np.random.seed(1)
        self.segments = segments

    def __call__(self, texts: np.ndarray) -> dict[str, np.ndarray]:
        """Texts, integers [B, raw], to rows [B, inputs] and [B, targets]."""
        mask = np.asarray([random_spans_mask(texts.shape[1], self.segments) for _ in texts])
        input_ids = self.filtered(texts, self.sentinels(mask))
        labels = self.filtered(texts, self.sentinels(~mask))
        decoder_input_ids = np.empty_like(labels)
        decoder_input_ids[:, 1:], decoder_input_ids[:, 0] = labels[:, :-1], BOS
        return {"input_ids": input_ids, "labels": labels, "decoder_input_ids": decoder_input_ids}

    @staticmethod
    def sentinels(mask: np.ndarray) -> np.ndarray:
        """A sentinel where a hidden span begins, -1 in the rest of it, 0 where the text stays: int64 [B, raw]."""
        begins = mask & ~np.roll(mask, 1, axis=1)
        begins[:, 0] = mask[:, 0]
        ids = np.where(begins, np.cumsum(begins, axis=1) + VOCABULARY.first_sentinel - 1, 0)
        return np.where(mask & ~begins, -1, ids)

    @staticmethod
    def filtered(texts: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
        """Rows with their sentinels, without what these stand for, and an eos at the end."""
        full = np.where(sentinels != 0, sentinels, texts)
        rows = full[full >= 0].reshape(len(texts), -1)
        return np.concatenate([rows, np.full((len(texts), 1), EOS, rows.dtype)], axis=1)


# ---- ours


class Ours:
    """The same texts through our objective and the layout of an encoder-decoder, and on to packed batches."""

    def __init__(self, raw: int, row: int, target_row: int):
        self.objective = SpanCorruption(VOCABULARY, DENSITY, SPAN)
        self.lengths = SampleLengths(raw, row, target_row)
        self.row = Buffers(BATCH * target_row), Buffers(BATCH * row, 2)
        self.counter = 0

    def documents(self, texts: np.ndarray) -> tuple[Documents, np.ndarray]:
        """The texts as one sample each, and their keys."""
        count, length = texts.shape
        ones = np.ones(count, np.int64)
        self.counter += count
        keys = piece_keys(1, self.counter + np.arange(count), ones)
        return Documents(texts.ravel(), length * ones, np.ones(count, bool), ones), keys

    def same_work(self, texts: np.ndarray):
        """Inputs, labels and what the decoder reads."""
        return encdec_layout(self.objective(*self.documents(texts)), BOS)

    def packed(self, texts: np.ndarray):
        """A PackedBatch, as the loader makes it of what it has read."""
        documents, keys = self.documents(texts)
        documents, keys, left_out = fitted(self.objective, documents, keys, "encdec", self.lengths, VOCABULARY)
        layout = encdec_layout(self.objective(documents, keys), BOS)
        row = PackedRow(self.row[0].take(), self.row[1].take())
        return pack_layout(layout, documents.is_cut, PAD, row, int(left_out.sum()))


Work = tuple[Callable[[np.ndarray], object], list[np.ndarray]]


def best_rates(works: list[Work], rounds: int) -> list[float]:
    """Examples per CPU-second of each work on its batches, the best of several rounds in turn."""
    best = [0.0] * len(works)
    for _ in range(rounds):
        for number, (work, batches) in enumerate(works):
            start = time.process_time()
            for texts in batches:
                work(texts)
            best[number] = max(best[number], sum(map(len, batches)) / (time.process_time() - start))
    return best


def check_same_lengths(peer: Collator, ours: Ours, texts: np.ndarray) -> None:
    """Both must have made rows of T5's lengths, no token left out."""
    batch, packed = peer(texts), ours.packed(texts)
    sizes = [batch["input_ids"].shape[1], batch["labels"].shape[1]]
    assert sizes == [ours.lengths.row, ours.lengths.target_row], sizes
    assert packed.num_padding == packed.encoder.num_padding == packed.num_left_out == 0
    assert packed.num_targets == batch["labels"].size


def measure(rows: list[int], num_batches: int, rounds: int) -> list[Row]:
    """Comparisons for rows of so many inputs."""
    result = []
    for row in rows:
        raw, target_row = t5_lengths(row, DENSITY, SPAN)
        rng = np.random.default_rng(row)
        first = VOCABULARY.first_sentinel + NUM_SENTINELS
        batches = [rng.integers(first, VOCAB_SIZE, (BATCH, raw)).astype(np.uint16) for _ in range(num_batches)]
        peer, lean, ours = Collator(their_segments), Collator(lean_segments), Ours(raw, row, target_row)
        check_same_lengths(peer, ours, batches[0])
        # the peers get int64, as tokenizers hand them texts
        wide = [texts.astype(np.int64) for texts in batches]
        works: list[Work] = [(peer, wide), (lean, wide), (ours.same_work, batches), (ours.packed, batches)]
        theirs, leaner, same, packed = best_rates(works, rounds)
        what = f"examples per CPU-second, {raw} tokens to {row} and {target_row}"
        result += [
            Row(f"{what}, same work", same, "HF T5 collator", theirs),
            Row(f"{what}, packed", packed, "HF T5 collator", theirs, GOAL),
            Row(f"{what}, packed", packed, "the same made leaner", leaner),
        ]
    return result


def main(args: argparse.Namespace) -> int:
    """Runs the comparison."""
    torch.set_num_threads(1)
    rows = measure([512], 5, 3) if args.quick else measure([512, 1024], 20, 7)
    return show("Span corruption at density 0.15, spans of 3", rows, args)


if __name__ == "__main__":
    sys.exit(main(parser(__doc__.splitlines()[0]).parse_args()))
