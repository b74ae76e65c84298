"""Padding, cut documents and text left out: windows against whole documents, for every objective, shape and length.

    python -m benchmarks.packing [--corpus FILE.jsonl ...] [--quick] [--check] [--json FILE]

The text is the standard library's sources, and whatever corpora of JSON lines are named besides, each in the vocabulary
of a tokenizer trained on it. Up to 1,500 samples of a pass are made into batches and counted. A document counts as cut
needlessly if it is no longer than the window that the objective would otherwise take. Working out rows is measured
where it costs most: each sample of another block, none remembered, as in a dataset that is far larger than memory.
"""

import argparse
import dataclasses
import json
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.loss_parity import GRID
from benchmarks.table import Row, parser, show
from data_pipeline.building.tokenizer_training import train_tokenizer
from data_pipeline.config import ObjectiveConfig, SourceConfig, TokenizerConfig
from data_pipeline.manifest import Manifest, ShardInfo, ShardTable
from data_pipeline.reading import whole_documents
from data_pipeline.reading.batches import BatchMaker, Reading
from data_pipeline.reading.dataset import Samples, TokenDataset
from data_pipeline.reading.draws import before
from data_pipeline.shards import ShardReader, ShardWriter
from data_pipeline.tokenizer import Tokenizer

VOCAB_SIZE, NUM_SENTINELS = 16_000, 1024
MOST_PADDING, MOST_LEFT_OUT = 0.05, 0.005
NUM_SAMPLES = 1500
SHARD = "train-00000"


# ---- text to tokens


def library() -> list[str]:
    """The standard library's sources, each once."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = (file for file in sorted(folder.rglob("*.py")) if "site-packages" not in file.parts)
    return [text for text in dict.fromkeys(file.read_bytes().decode(errors="replace") for file in files) if text]


def corpus(file: Path) -> list[str]:
    """The field `text` of JSON lines."""
    return [json.loads(line)["text"] for line in file.open(encoding="utf-8")]


def write_dataset(folder: Path, texts: list[str]) -> Path:
    """A dataset of one shard, in the vocabulary of a tokenizer of its own."""
    folder.mkdir()
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    how = TokenizerConfig(
        path=str(folder / "tokenizer"), vocab_size=VOCAB_SIZE, num_sentinels=NUM_SENTINELS, training_megabytes=10
    )
    train_tokenizer(how, [SourceConfig(path=str(source))])
    tokenizer = Tokenizer.load(folder / "tokenizer")
    with ShardWriter(folder / SHARD, VOCAB_SIZE) as writer:
        for start in range(0, len(texts), 500):
            writer.add(*tokenizer.encode_documents(texts[start : start + 500]))
    counts = {"num_documents": writer.num_documents, "num_tokens": writer.num_tokens}
    shard = ShardInfo(name=SHARD, checksums=writer.checksums, source_bytes=sum(map(len, texts)), **counts)
    splits = {"train": ShardTable.of([shard])}
    Manifest(**tokenizer.record(), config_fingerprint="", splits=splits).save(folder)
    return folder


# ---- what samples are made of


@dataclasses.dataclass(frozen=True)
class Figures:
    """Shares over the samples looked at."""

    padding: float
    """Of the places of all rows."""
    pieces_cut: float
    """Of what stands in rows."""
    needless: float
    """Documents that are cut though a row would hold them, of those that a row would hold."""
    left_out: float
    """Of the text."""


def reading(folder: Path, shape: str, name: str, row: int, packing: str) -> Reading:
    """How the only rank reads."""
    manifest = Manifest.load(folder)
    return Reading(folder, manifest, ObjectiveConfig(name=name), shape, row, 1, 1, packing=packing)  # type: ignore[arg-type]


def figures(how: Reading, window: int) -> Figures:
    """Of up to NUM_SAMPLES samples, and of all documents."""
    maker = BatchMaker(how, "train")
    every = np.arange(len(maker.dataset))
    chosen = np.random.default_rng(1).permutation(every)[:NUM_SAMPLES]
    padding = places = cut = pieces = left_out = 0
    for batch in maker(chosen, chosen):
        padding, places = padding + batch.num_padding, places + len(batch.tokens)
        if batch.encoder:
            padding, places = padding + batch.encoder.num_padding, places + len(batch.encoder.tokens)
        cut, pieces, left_out = cut + batch.num_cut, pieces + batch.num_documents, left_out + batch.num_left_out
    text = len(chosen) * maker.lengths.window
    return Figures(padding / places, cut / pieces, _needless(maker.dataset, every, window), left_out / text)


def _needless(dataset: TokenDataset, every: np.ndarray, window: int) -> float:
    starts = ShardReader(Path(dataset.folder) / SHARD).boundaries(0, dataset.num_tokens)
    fits = np.diff(starts, append=dataset.num_tokens) <= window
    located = dataset.locate(every)
    of_piece = np.searchsorted(starts, _places(located), side="right") - 1
    cut = np.zeros(len(starts), bool)
    cut[of_piece[located.is_cut]] = True
    return float((cut & fits).sum() / max(int(fits.sum()), 1))


def _places(located: Samples) -> np.ndarray:
    """First token of each piece in the only shard."""
    at = before(located.lengths)
    part = np.searchsorted(located.parts.at, at, side="right") - 1
    return located.parts.start[part] + at - located.parts.at[part]


def rate(how: Reading) -> float:
    """Tokens of text whose place is found in a CPU-second, where every sample is of another block."""
    with mock.patch.object(whole_documents, "MAX_KEPT_PIECES", 0):
        maker = BatchMaker(how, "train")
        firsts = np.arange(0, len(maker.dataset) - 127, 128)
        repeats = -(-256 // len(firsts))
        passes = np.repeat(np.arange(repeats), len(firsts))
        maker.dataset.locate(firsts[:1])
        started = time.process_time()
        maker.dataset.locate(np.tile(firsts, repeats), passes)
        return len(passes) * maker.dataset.window / (time.process_time() - started)


# ---- the table


def compare(name: str, folder: Path, row: int, quick: bool) -> list[Row]:
    """Both packings of one corpus, for rows of one length."""
    rows = []
    for shape, objectives in GRID.items():
        for objective in objectives[: 2 if quick else None]:
            windows = reading(folder, shape, objective, row, "windows")
            whole = dataclasses.replace(windows, packing="best_fit")
            window = BatchMaker(windows, "train").lengths.window
            old, new = figures(windows, window), figures(whole, window)
            what = f"{name} {row} {shape} {objective}: "
            rows += [
                Row(what + "% padding", 100 * new.padding, "windows", 100 * old.padding, None, True),
                Row(what + "% padding", 100 * new.padding, "limit", 100 * MOST_PADDING, 1.0, True),
                Row(what + "% left out", 100 * max(new.left_out, 1e-9), "limit", 100 * MOST_LEFT_OUT, 1.0, True),
                Row(
                    what + "% cut needlessly", 100 * max(new.needless, 1e-9), "windows", 100 * old.needless, None, True
                ),
                Row(what + "% of pieces cut", 100 * new.pieces_cut, "windows", 100 * old.pieces_cut, None, True),
            ]
            if objective in ("next_token", "prefix_lm", "ul2"):
                rows.append(Row(what + "tokens placed per CPU-second", rate(whole), "need", 2e5, None))
    return rows


def main(args: argparse.Namespace) -> int:
    """Measures all corpora."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = {"library": library()} | {file.stem: corpus(file) for file in args.corpus}
        rows = []
        for title, documents in texts.items():
            dataset = write_dataset(folder / title, documents)
            for row in (512,) if args.quick else (512, 2048):
                rows += compare(title, dataset, row, args.quick)
    return show("Whole documents, packed best-fit, against windows", rows, args)


if __name__ == "__main__":
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--corpus", type=Path, action="append", default=[], help="JSON lines with a field 'text'")
    sys.exit(main(options.parse_args()))
