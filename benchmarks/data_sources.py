"""What reading and planning sources costs, and whether a build that adds sources survives being killed.

    python -m benchmarks.data_sources [--quick] [--check] [--json FILE] [--kills N]

Reading: CPU seconds for the same documents, by us in parts of 4 MB and by the library that the format is of, which
reads them whole: an arrow dataset by `datasets`, token ids by megatron-core, gzip of many members by the standard
library. The documents are compared. Planning: CPU seconds and bytes read for each gzip file that is larger than a task.

Kills: a dataset of one source is grown by a second one, by a build that is killed with SIGKILL N times (3) at random
places. The folder is compared, byte for byte, with one that was left alone and used another number of CPUs; at every
death the smaller dataset has to be there and whole.
"""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.data_build import ROOT, write_corpus
from benchmarks.table import Row, parser, show
from data_pipeline.building import members
from data_pipeline.building.formats.megatron import KnownIds, read_megatron
from data_pipeline.building.records import Rejects, Unit
from data_pipeline.building.source_files import list_files
from data_pipeline.building.sources import plan_units, read_documents
from data_pipeline.config import DataConfig, SourceConfig, TokenizerConfig
from data_pipeline.manifest import Manifest
from data_pipeline.opening import open_dataset
from data_pipeline.tokenizer import train_tokenizer

UNIT_BYTES = 4_000_000
MEMBER_BYTES = 64_000
PLACES = {"hashing documents": 3, "finding copies": 1, "tokenizing": 3}
"""Stages of a build, and after how many of their tasks at most it is killed."""
KILLED = """
import os, signal, sys
from data_pipeline.building.build import build_dataset
from data_pipeline.config import DataConfig, TokenizerConfig

stage, done = sys.argv[3], int(sys.argv[4])

def look(state):
    if state.stage == stage and state.done >= done:
        os.kill(os.getpid(), signal.SIGKILL)

build_dataset(DataConfig.model_validate_json(sys.argv[1]), TokenizerConfig.model_validate_json(sys.argv[2]), look)
"""


def timed(call: Callable[[], list]) -> tuple[float, list]:
    """CPU seconds of a call, and what it gave."""
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


def units_of(source: SourceConfig) -> list[Unit]:
    """A source in parts of UNIT_BYTES."""
    return plan_units(list_files([source]), [source], UNIT_BYTES)


def texts_of(source: SourceConfig) -> list[str]:
    """All documents of a source, part after part."""
    return [text for unit in units_of(source) for _, text in read_documents(unit, source, Rejects())]


# ---- reading


def compare_arrow(folder: Path, texts: list[str]) -> Row:
    """A dataset as `save_to_disk` leaves it."""
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(folder / "saved")
    ours, found = timed(lambda: texts_of(SourceConfig(path=str(folder / "saved"))))
    theirs, expected = timed(lambda: [row["text"] for row in datasets.load_from_disk(folder / "saved")])
    assert found == expected == texts
    return Row("CPU seconds to read an arrow dataset", ours, "datasets", theirs, 0.5, lower_is_better=True)


def compare_megatron(folder: Path, num_documents: int) -> Row:
    """Ids as megatron-core writes them."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    generator = np.random.default_rng(0)
    builder = IndexedDatasetBuilder(str(folder / "ids.bin"), dtype=np.uint16)
    for length in generator.integers(2, 2000, num_documents):
        ids = generator.integers(3, 32000, length)
        builder.add_document(ids, [length])
    builder.finalize(str(folder / "ids.idx"))
    known = KnownIds(1, 2, np.full(32000, 4))

    def read() -> list[np.ndarray]:
        units = units_of(SourceConfig(path=str(folder / "ids"), format="megatron"))
        return [batch.tokens for unit in units for batch in read_megatron(unit, known, Rejects())]

    ours, batches = timed(read)
    dataset = IndexedDataset(str(folder / "ids"))
    theirs, expected = timed(lambda: [dataset[number] for number in range(len(dataset))])
    found = np.concatenate(batches)
    assert np.array_equal(found[found > 2], np.concatenate(expected))
    return Row("CPU seconds to read, hash and border ids", ours, "IndexedDataset", theirs, lower_is_better=True)


def compare_members(folder: Path, lines: bytes) -> Row:
    """Lines in members that end anywhere, in parts and whole."""
    path = folder / "lines.jsonl.gz"
    starts = range(0, len(lines), MEMBER_BYTES)
    path.write_bytes(b"".join(gzip.compress(lines[start : start + MEMBER_BYTES], 6) for start in starts))
    source = SourceConfig(path=str(path))
    assert len(units_of(source)) > 3
    ours, found = timed(lambda: texts_of(source))
    theirs, expected = timed(
        lambda: [json.loads(line)["text"] for line in gzip.decompress(path.read_bytes()).splitlines()]
    )
    assert found == expected
    return Row("CPU seconds to read gzip in parts", ours, "gzip, whole", theirs, 0.5, lower_is_better=True)


def plan_cost(folder: Path, lines: bytes) -> Row:
    """A file of one member, which is looked at in vain."""
    path = folder / "one.gz"
    path.write_bytes(gzip.compress(lines, 6))
    with path.open("rb", buffering=0) as file:
        seconds, _ = timed(lambda: [members.has_members(file, "gzip") for _ in range(20)])
    return Row("CPU seconds to plan a gzip file", seconds / 20, "most", 0.1, 1.0, lower_is_better=True)


# ---- growing


def grow(folder: Path, sources: list[Path], tokenizer: TokenizerConfig, kills: int, num_cpus: int) -> None:
    """Builds a dataset of all sources but the last, then adds that, killed so many times on the way."""
    chance = random.Random(kills)
    places = [(stage, at) for stage, most in PLACES.items() for at in range(most + 1)]
    deaths = sorted(chance.sample(places, kills), key=places.index)
    steps = [(sources[:-1], ("", 0)), *((sources, death) for death in deaths), (sources, ("", 0))]
    for paths, (stage, done) in steps:
        config = DataConfig(
            path=str(folder),
            sources=[SourceConfig(path=str(path)) for path in paths],
            shard_megabytes=1,
            num_cpus=num_cpus,
        )
        texts = [config.model_dump_json(), tokenizer.model_dump_json(), stage, str(done)]
        ended = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, *texts], cwd=ROOT).returncode
        assert ended == (-signal.SIGKILL if stage else 0), f"the build ended with {ended}"
        found = open_dataset(folder)
        if len(paths) < len(sources):
            smaller = found
        elif stage:
            assert found == smaller, "the smaller dataset is not there after a kill"
    assert found.num_documents("train") > smaller.num_documents("train")


def content(folder: Path) -> dict[str, bytes]:
    """All files of a dataset."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_growing(folder: Path, num_bytes: int, kills: int) -> None:
    """Fails unless killed builds and others leave the same bytes, none of them twice."""
    sources = [folder / "first.jsonl", folder / "second.jsonl"]
    write_corpus(sources[0], num_bytes)
    write_corpus(sources[1], 2 * num_bytes)
    tokenizer = TokenizerConfig(path=str(folder / "tokenizer"), vocab_size=2000, training_megabytes=1)
    train_tokenizer(tokenizer, [SourceConfig(path=str(sources[0]))])
    grow(folder / "alone", sources, tokenizer, 0, 1)
    grow(folder / "killed", sources, tokenizer, kills, 2)
    assert content(folder / "alone") == content(folder / "killed"), "killed builds left other bytes"
    counts = Manifest.load(folder / "killed").counts
    assert counts["dropped_repeated"] > 0
    print(f"grown by a source and killed {kills} times, byte for byte the same: {counts}")


def main() -> int:
    """Runs all of it."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--kills", type=int, default=3, help="deaths of the build that adds a source")
    args = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus.jsonl", 20_000_000 if args.quick else 100_000_000)
        lines = (folder / "corpus.jsonl").read_bytes()
        texts = [json.loads(line)["text"] for line in lines.splitlines()]
        rows = [
            compare_arrow(folder, texts),
            compare_megatron(folder, 5_000 if args.quick else 50_000),
            compare_members(folder, lines),
            plan_cost(folder, lines),
        ]
        status = show("Sources", rows, args)
        check_growing(folder, 3_000_000 if args.quick else 10_000_000, args.kills)
    return status


if __name__ == "__main__":
    sys.exit(main())
