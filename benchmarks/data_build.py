"""From text to shards: our build against bare sentencepiece and against preprocessing the way Megatron-LM does it.

The text is the standard library's sources, several times with a share of the words changed, as JSON lines without
repeats. All three give the same ids, which is checked. What is compared is tokens per CPU-second, user and system
time of all processes, Ray's included: gross, and net of what the same build takes for as many tasks of one short
document each (starting Python, Ray and its workers, importing everything; the median of three).
"""

import argparse
import ctypes
import dataclasses
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import sentencepiece

from benchmarks.table import Row, parser, show
from data_pipeline.config import DataConfig, SourceConfig, TokenizerConfig
from data_pipeline.manifest import Manifest
from data_pipeline.shards import ShardReader
from data_pipeline.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
WORD = re.compile(r"[A-Za-z_]{5,}")
SHARE_CHANGED = 6
"""One word of so many is changed in every further copy of the text."""
SAMPLE_SECONDS = 0.05
ORPHAN_SECONDS = 60
"""How long processes may outlive the command that started them."""
SHARD_MEGABYTES = 16.0


# ---- the text


def write_corpus(path: Path, num_bytes: int) -> None:
    """Writes about num_bytes of documents as JSON lines."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    originals = {_read(file): None for file in sorted(folder.rglob("*.py")) if "site-packages" not in file.parts}
    written = copy = 0
    with path.open("w", encoding="utf-8") as out:
        while written < num_bytes:
            for text in originals:
                if len(text) > 200 and written < num_bytes:
                    text = _vary(text, copy)
                    out.write(json.dumps({"text": text}) + "\n")
                    written += len(text.encode())
            copy += 1


def _read(file: Path) -> str:
    return file.read_bytes().decode(errors="replace")


def _vary(text: str, copy: int) -> str:
    """The text with a share of its words changed, the same word always in the same way within a copy."""
    if copy == 0:
        return text
    seed = zlib.crc32(f"copy {copy}".encode())
    return WORD.sub(lambda match: _vary_word(match[0], seed), text) + f"\n# {copy}\n"


def _vary_word(word: str, seed: int) -> str:
    chosen = zlib.crc32(word.encode(), seed)
    if chosen % SHARE_CHANGED:
        return word
    letters = list(word)
    random.Random(chosen).shuffle(letters)
    return "".join(letters)


def read_texts(path: Path) -> list[str]:
    """The documents of a JSON lines file."""
    return [json.loads(line)["text"] for line in path.open(encoding="utf-8")]


# ---- ours, measured from outside


@dataclasses.dataclass
class Spent:
    """CPU seconds of a process as they were when it was last looked at."""

    own: float
    """Its own."""
    waited_for: float
    """Those of its children that had ended and that it had waited for, with theirs."""
    parent: "Key | None"
    """Its parent among the processes measured; None for this process, which measures."""
    waits: bool
    """Whether it waits for its children; the seconds of those nobody waits for, the system forgets."""
    seen: float
    """When that was."""


Key = tuple[int, float]
"""A process by its number and the time it was created."""


def measure_tree(command: list[str]) -> tuple[float, float]:
    """CPU seconds of a command and of all processes it started, and the largest sum of their memory, in bytes.

    Every process is looked at often. What it spends after the last look, and what those spend that come and go
    between two looks, is known from whoever waited for it: its parent, or this process, which adopts orphans. Where
    nobody waits (children of Ray's raylet), it is taken to have kept a core busy from the last look to the next.
    """
    _adopt_orphans(True)
    before, others = _waited_for(), {child.pid for child in psutil.Process().children()}
    process = subprocess.Popen(command, cwd=ROOT)
    spent: dict[Key, Spent] = {}
    peak, ended = 0, None
    try:
        while True:
            roots = [child for child in psutil.Process().children() if child.pid not in others]
            peak = max(peak, _look(roots, spent))
            for orphan in roots:
                if orphan.pid != process.pid:
                    os.waitpid(orphan.pid, os.WNOHANG)
            if process.poll() is not None:
                ended = ended or time.monotonic()
                if not any(child.pid not in others for child in psutil.Process().children()):
                    break
                if time.monotonic() > ended + ORPHAN_SECONDS:
                    raise SystemExit(f"{' '.join(command)} left processes behind")
            time.sleep(SAMPLE_SECONDS)
    finally:
        _adopt_orphans(False)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return total_seconds(spent, _waited_for() - before), peak


def _adopt_orphans(adopt: bool) -> None:
    set_child_subreaper = 36
    if ctypes.CDLL(None).prctl(set_child_subreaper, int(adopt), 0, 0, 0):
        raise SystemExit("the system does not let this process adopt orphans (prctl PR_SET_CHILD_SUBREAPER)")


def _waited_for() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _look(roots: list[psutil.Process], spent: dict[Key, Spent]) -> int:
    """Notes what roots and all below them spent so far; returns the memory they hold alone (or all, if unknown)."""
    memory, now = 0, time.monotonic()
    alive: dict[int, Key] = {}
    for process in (each for root in roots for each in _with_descendants(root)):
        try:
            times, facts = process.cpu_times(), process.memory_info()
            key = alive[process.pid] = process.pid, process.create_time()
            waited_for = times.children_user + times.children_system
            parent, waits = alive.get(process.ppid()), _waits_for_children(process.pid)
        except (psutil.Error, OSError):
            continue
        spent[key] = Spent(times.user + times.system, waited_for, parent, waits, now)
        memory += facts.rss - getattr(facts, "shared", 0)
    for key in spent.keys() - set(alive.values()):
        one = spent[key]
        if one.parent is not None and not spent[one.parent].waits and one.seen < float("inf"):
            one.own += now - one.seen
        one.seen = float("inf")
    return memory


def _with_descendants(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]  # parents before children
    except psutil.Error:
        return []


def _waits_for_children(pid: int) -> bool:
    """False when the process ignores the signal of a child's end: then the system waits in its place."""
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = int(re.search(r"^SigIgn:\s*(\w+)", status, re.M)[1], 16)  # type: ignore[index]
    return not ignored >> (signal.SIGCHLD - 1) & 1


def total_seconds(spent: dict[Key, Spent], waited_for: float) -> float:
    """CPU seconds of all processes, given those of the ones this process waited for, with what they waited for.

    To what was seen of each is added what its parent was told beyond that.
    """
    children: dict[Key | None, list[Key]] = {}
    for key, one in spent.items():
        children.setdefault(one.parent, []).append(key)

    def known(key: Key) -> float:
        """What is counted already of all that the parent of this process was told of it."""
        one = spent[key]
        return one.own + (max(one.waited_for, below(key)) if one.waits else one.waited_for)

    def below(key: Key | None) -> float:
        return sum(map(known, children.get(key, [])))

    unseen = max(0.0, waited_for - below(None))
    unseen += sum(max(0.0, one.waited_for - below(key)) for key, one in spent.items() if one.waits)
    return sum(one.own for one in spent.values()) + unseen


def build_command(folder: Path, corpus: Path, tokenizer: TokenizerConfig, shard_megabytes: float) -> list[str]:
    """A build as a user starts it, less the command line."""
    config = DataConfig(
        path=str(folder),
        sources=[SourceConfig(path=str(corpus))],
        validation_fraction=0,
        shard_megabytes=shard_megabytes,
        num_cpus=2,
    )
    code = (
        "import sys; from data_pipeline.building.build import build_dataset; "
        "from data_pipeline.config import DataConfig, TokenizerConfig; "
        "build_dataset(DataConfig.model_validate_json(sys.argv[1]), TokenizerConfig.model_validate_json(sys.argv[2]))"
    )
    return [sys.executable, "-c", code, config.model_dump_json(), tokenizer.model_dump_json()]


def shard_tokens(folder: Path) -> np.ndarray:
    """All training tokens of a dataset."""
    shards = [ShardReader(folder / shard.name) for shard in Manifest.load(folder).splits["train"]]
    return np.concatenate([shard.tokens(0, shard.num_tokens) for shard in shards])


# ---- the peers, each in a process of its own


def run_sentencepiece(corpus: Path, model: str, out: Path) -> dict[str, float]:
    """CPU seconds of EncodeAsIds alone, over documents that are in memory."""
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    texts = read_texts(corpus)
    started = time.process_time()
    ids = [processor.EncodeAsIds(text) for text in texts]
    seconds = time.process_time() - started
    ends = [processor.bos_id()], [processor.eos_id()]
    np.save(out / "ids.npy", np.concatenate([part for each in ids for part in (ends[0], each, ends[1])]))
    return {"seconds": seconds, "num_tokens": sum(map(len, ids))}


_encoder: sentencepiece.SentencePieceProcessor


def start_worker(model: str) -> None:
    """Loads the model that a worker of a pool encodes with."""
    global _encoder
    _encoder = sentencepiece.SentencePieceProcessor(model_file=model)


def encode_line(line: str) -> tuple[list[int], list[int]]:
    """Ids of a line's document with both ends, and its length in a list, as Megatron's builder wants it."""
    ids = [_encoder.bos_id(), *_encoder.EncodeAsIds(json.loads(line)["text"]), _encoder.eos_id()]
    return ids, [len(ids)]


def run_megatron(corpus: Path, model: str, out: Path) -> dict[str, float]:
    """CPU seconds of JSON lines -> a pool of one worker -> megatron-core's IndexedDatasetBuilder, after imports."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    started = _cpu_seconds()
    builder = IndexedDatasetBuilder(str(out / "megatron.bin"), dtype=np.uint16)
    with corpus.open(encoding="utf-8") as lines, multiprocessing.Pool(1, start_worker, (model,)) as pool:
        for ids, lengths in pool.imap(encode_line, lines, 32):
            builder.add_document(ids, lengths)
        builder.finalize(str(out / "megatron.idx"))
        pool.close()
        pool.join()
    return {"seconds": _cpu_seconds() - started}


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


PEERS = {"sentencepiece": run_sentencepiece, "megatron": run_megatron}


def measure_peer(name: str, corpus: Path, model: Path, out: Path) -> dict[str, float]:
    """What a peer found out about itself."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.data_build"]
    arguments = ["--peer", name, str(corpus), str(model), str(out)]
    result = subprocess.run([*command, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


# ---- the comparison


def compare(folder: Path, quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """Builds the text, runs all three on it and sees that their ids are the same."""
    corpus, tiny = folder / "corpus.jsonl", folder / "tiny.jsonl"
    write_corpus(corpus, 24_000_000 if quick else 80_000_000)
    num_tasks = -(-corpus.stat().st_size // round(SHARD_MEGABYTES * 1e6))
    words = " ".join(["short"] * 20)  # a task takes 100 bytes at least
    tiny.write_text("".join(f'{{"text": "{words} document {index}"}}\n' for index in range(num_tasks)))
    tokenizer = TokenizerConfig(
        path=str(folder / "tokenizer"), vocab_size=8000 if quick else 32000, training_megabytes=8 if quick else 30
    )
    train_tokenizer(tokenizer, [SourceConfig(path=str(corpus))])
    model = folder / "tokenizer" / "tokenizer.model"

    repeats = range(2)
    gross, peak = min(
        measure_tree(build_command(folder / f"ours{i}", corpus, tokenizer, SHARD_MEGABYTES)) for i in repeats
    )
    one_document = tiny.stat().st_size / num_tasks / 1e6
    starts = [measure_tree(build_command(folder / f"tiny{i}", tiny, tokenizer, one_document)) for i in range(3)]
    fixed = statistics.median(seconds for seconds, _ in starts)
    bare = min((measure_peer("sentencepiece", corpus, model, folder) for _ in repeats), key=lambda one: one["seconds"])
    megatron = min(measure_peer("megatron", corpus, model, folder)["seconds"] for _ in repeats)

    expected = np.load(folder / "ids.npy")
    assert np.array_equal(shard_tokens(folder / "ours0"), expected), "our ids are not sentencepiece's"
    assert np.array_equal(np.fromfile(folder / "megatron.bin", np.uint16), expected), "Megatron-style ids differ"

    tokens = bare["num_tokens"]
    facts = {"tokens": tokens, "bytes": corpus.stat().st_size, "fixed_cpu_seconds": fixed, "peak_bytes": peak}
    net = gross - fixed
    per_second = "tokens per CPU-second"
    return [
        Row(f"{per_second}, net of start-up", tokens / net, "sentencepiece alone", tokens / bare["seconds"], 2.0),
        Row(f"{per_second}, net of start-up", tokens / net, "Megatron-style", tokens / megatron, 4.0),
        Row(f"{per_second}, gross", tokens / gross, "sentencepiece alone", tokens / bare["seconds"]),
        Row(f"{per_second}, gross", tokens / gross, "Megatron-style", tokens / megatron),
    ], facts


def main() -> int:
    """Runs the comparison, or one peer in a process of its own."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--peer", nargs=4, metavar=("NAME", "CORPUS", "MODEL", "OUT"), help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.peer:
        name, corpus, model, out = args.peer
        print(json.dumps(PEERS[name](Path(corpus), model, Path(out))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        rows, facts = compare(Path(folder), args.quick)
    status = show("From text to shards", rows, args)
    print(
        f"{facts['tokens']:,} tokens from {facts['bytes'] / 1e6:.0f} MB of JSON lines; start-up of Python and Ray "
        f"{facts['fixed_cpu_seconds']:.1f} CPU-seconds; all processes together held {facts['peak_bytes'] / 1e6:.0f} MB"
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
