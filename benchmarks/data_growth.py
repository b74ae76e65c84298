"""Building gigabytes by the wall clock: against a pool of bare sentencepiece and datatrove, and as they grow.

    python -m benchmarks.data_growth [--datatrove PYTHON] [--quick] [--check] [--json FILE]

Everything a user waits for counts: Python, Ray, reading, exact copies looked for, tokenizing, shards. Both peers have
both cores. The pool reads lines, parses them and encodes, and writes nothing; datatrove (an interpreter that has
`pip install datatrove tokenizers orjson`) reads the smallest size and writes its own files, by the `tokenizer.json`
that gives the same ids, unshuffled. Numbers of tokens must be ours, but for the few texts in which datatrove's finds a
literal `<s>` and takes it for the special one. The text is that of benchmarks/data_build.py, a tenth of a gigabyte of
it, and again with a number before each document for every further part. Memory is what all processes hold at once,
shared pages left out.
"""

import argparse
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.data_build import SHARD_MEGABYTES, build_command, encode_line, measure_tree, start_worker, write_corpus
from benchmarks.table import Row, parser, show
from data_pipeline.config import SourceConfig, TokenizerConfig
from data_pipeline.manifest import Manifest
from data_pipeline.tokenizer import train_tokenizer

PARTS, PARTS_OF_QUICK = (1, 10, 40), (1, 2, 4)
"""Sizes, in parts."""
PART, PART_OF_QUICK = 100_000_000, 10_000_000
"""Bytes of a part, about."""
PROCESSES = 2
POOL_GOAL, DATATROVE_GOAL, GROWTH_GOAL, MEMORY_GOAL = 2.5, 4.0, 0.9, 0.8
SPECIAL = 1e-4
"""Share of tokens that may be missing for that."""
START = b'{"text": "'
DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer

if __name__ == "__main__":
    texts, tokenizer, out, processes = sys.argv[1:]
    steps = [JsonlReader(texts), DocumentTokenizer(out + "/ids", tokenizer, shuffle_documents=False)]
    LocalPipelineExecutor(steps, tasks=int(processes), workers=int(processes), logging_dir=out + "/logs").run()
"""


class Built(NamedTuple):
    """What a build took."""

    size: int
    """Bytes of text."""
    seconds: float
    memory: float
    """Bytes."""
    num_tokens: int


def enlarge(part: Path, out: Path, count: int) -> None:
    """Writes so many parts, in which no document is like another."""
    with out.open("wb") as file:
        for number in range(count):
            with part.open("rb") as lines:
                for line in lines:
                    assert line.startswith(START)
                    file.write(START + b"%d " % number + line[len(START) :])


def build(folder: Path, corpus: Path, tokenizer: TokenizerConfig) -> Built:
    """Builds a dataset and forgets it."""
    out = folder / "dataset"
    started = time.perf_counter()
    _, memory = measure_tree(build_command(out, corpus, tokenizer, SHARD_MEGABYTES))
    seconds = time.perf_counter() - started
    tokens = sum(shard.num_tokens for shard in Manifest.load(out).splits["train"])
    shutil.rmtree(out)
    return Built(corpus.stat().st_size, seconds, memory, tokens)


def _count(line: str) -> int:
    return len(encode_line(line)[0])


def pool(corpus: Path, model: Path) -> tuple[float, int]:
    """Seconds that a pool of bare sentencepiece takes, and tokens, with both ends of documents."""
    started = time.perf_counter()
    start = (PROCESSES, start_worker, (str(model),))
    with corpus.open(encoding="utf-8") as lines, multiprocessing.Pool(*start) as workers:
        tokens = sum(workers.imap_unordered(_count, lines, 64))
    return time.perf_counter() - started, tokens


def datatrove(python: str, corpus: Path, model: Path, folder: Path) -> tuple[float, int]:
    """Seconds that datatrove takes, and tokens, without ends of documents; one file for each of its processes."""
    from transformers import LlamaTokenizer

    home = folder / "tokenizer-json"
    home.mkdir()
    shutil.copyfile(model, home / "tokenizer.model")
    made = LlamaTokenizer.from_pretrained(home, legacy=False, add_prefix_space=False, add_bos_token=False)
    made.save_pretrained(home)
    texts = folder / "texts"
    texts.mkdir()
    with corpus.open("rb") as lines:
        files = [(texts / f"{number}.jsonl").open("wb") for number in range(PROCESSES)]
        for number, line in enumerate(lines):
            files[number % PROCESSES].write(line)
        for file in files:
            file.close()
    program = folder / "with_datatrove.py"
    program.write_text(DATATROVE)
    command = [python, program, texts, home / "tokenizer.json", folder / "theirs", PROCESSES]
    started = time.perf_counter()
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"datatrove failed:\n{done.stderr[-2000:]}")
    return seconds, sum(file.stat().st_size for file in (folder / "theirs" / "ids").glob("*.ds")) // 2


def compare(folder: Path, args: argparse.Namespace) -> list[Row]:
    """Builds all sizes, and gives the smallest and the middle one to the peers."""
    part = folder / "part.jsonl"
    write_corpus(part, PART_OF_QUICK if args.quick else PART)
    num_documents = sum(1 for _ in part.open("rb"))
    tokenizer = TokenizerConfig(path=str(folder / "tokenizer"), vocab_size=32000, training_megabytes=30)
    train_tokenizer(tokenizer, [SourceConfig(path=str(part))])
    model = folder / "tokenizer" / "tokenizer.model"
    sizes = PARTS_OF_QUICK if args.quick else PARTS
    built: list[Built] = []
    peers: dict[str, Any] = {}
    for count in sizes:
        corpus = folder / "corpus.jsonl"
        enlarge(part, corpus, count)
        built.append(build(folder, corpus, tokenizer))
        print(f"{count} parts: {built[-1]}", file=sys.stderr)
        if count == sizes[0] and args.datatrove:
            seconds, tokens = datatrove(args.datatrove, corpus, model, folder)
            expected = built[-1].num_tokens - 2 * num_documents
            assert abs(tokens - expected) < SPECIAL * expected, f"datatrove has {tokens} tokens, not {expected}"
            peers["datatrove"] = corpus.stat().st_size / seconds
        if count == sizes[1]:
            seconds, tokens = pool(corpus, model)
            assert tokens == built[-1].num_tokens, f"sentencepiece has {tokens} tokens"
            peers["pool"] = corpus.stat().st_size / seconds
        corpus.unlink()
    return rows_of(built, peers)


def rows_of(built: list[Built], peers: dict[str, float]) -> list[Row]:
    """The table."""
    _, middle, large = built
    what, speed = f"MB/s, {middle.size / 1e9:.2f} GB, all included", middle.size / middle.seconds / 1e6
    rows = [Row(what, speed, "pool of bare sentencepiece", peers["pool"] / 1e6, POOL_GOAL)]
    if "datatrove" in peers:
        rows.append(Row(what, speed, "datatrove's tokenization", peers["datatrove"] / 1e6, DATATROVE_GOAL))
    for each in built:
        per_gb = each.seconds / each.size * 1e9
        goal = GROWTH_GOAL if each is large else None
        peer = f"at {middle.size / 1e9:.2f} GB"
        rows.append(
            Row(f"s per GB, {each.size / 1e9:.2f} GB", per_gb, peer, middle.seconds / middle.size * 1e9, goal, True)
        )
        goal = MEMORY_GOAL if each is large else None
        memory = f"MB of memory, {each.size / 1e9:.2f} GB"
        rows.append(Row(memory, each.memory / 1e6, peer, middle.memory / 1e6, goal, True))
    return rows


def main() -> int:
    """Runs the comparison."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--datatrove", metavar="PYTHON", help="interpreter that has datatrove")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="shardline-bench-") as folder:
        rows = compare(Path(folder), args)
    if not args.datatrove:
        print("datatrove was not compared: --datatrove names an interpreter that has it", file=sys.stderr)
    return show("From JSON lines to shards on 2 cores, by the wall clock", rows, args)


if __name__ == "__main__":
    sys.exit(main())
