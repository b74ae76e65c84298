"""Does a dataset come out the same on one Ray node, on two, and on two of which one is lost in the middle?

    python -m benchmarks.data_nodes [--megabytes N]

    a corpus with near copies planted in it -> built on one node of this machine's own
                                            -> on a cluster of two nodes
                                            -> on two, of which one is killed in a pass: for each pass of LOST

The nodes are Ray's own, each a raylet with one CPU and processes of its own, on this machine; they share its files, as
nodes share a file system. Killing one is SIGKILL to its raylet, at which its workers go. Exit status 1 when a byte of
a dataset differs.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.data_build import write_corpus
from benchmarks.data_sources import content
from data_pipeline.building.build import BuildProgress, build_dataset
from data_pipeline.config import DataConfig, DeduplicateConfig, SourceConfig, TokenizerConfig
from data_pipeline.manifest import Manifest
from data_pipeline.tokenizer import train_tokenizer

LOST = ("sketching documents", "gathering pairs", "deciding what stays", "tokenizing")
"""Passes in which a node is lost, when the first of their tasks is done."""
STORE_BYTES = 150_000_000


@contextmanager
def cluster(num_nodes: int) -> Iterator[tuple[str, list]]:
    """Address of a Ray cluster of so many nodes with a CPU each, and its nodes, the head first."""
    from ray.cluster_utils import Cluster

    how = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=how)
    try:
        nodes = [started.head_node]
        for _ in range(num_nodes - 1):
            nodes.append(started.add_node(num_cpus=1, object_store_memory=STORE_BYTES))
        started.wait_for_nodes()
        yield started.address, [started, *nodes]
    finally:
        started.shutdown()


def build(folder: Path, corpus: Path, tokenizer: TokenizerConfig, num_nodes: int, lost_in: str = "") -> float:
    """Builds the corpus on so many nodes, of which the last is lost in a pass; returns the seconds it took."""
    config = DataConfig(
        path=str(folder),
        sources=[SourceConfig(path=str(corpus))],
        deduplicate=DeduplicateConfig(documents="near"),
        shard_megabytes=1,
    )
    if num_nodes == 1:
        started = time.monotonic()
        build_dataset(config.model_copy(update={"num_cpus": 1}), tokenizer)
        return time.monotonic() - started
    with cluster(num_nodes) as (address, (nodes, *each)):
        lost: list[str] = []

        def look(state: BuildProgress) -> None:
            if state.stage == lost_in and state.done >= 1 and not lost:
                nodes.remove_node(each[-1], allow_graceful=False)
                lost.append(state.stage)

        started = time.monotonic()
        build_dataset(config.model_copy(update={"ray_address": address}), tokenizer, look)
        assert not lost_in or lost, f"the build had no pass '{lost_in}' in which a node could be lost"
        return time.monotonic() - started


def plant_copies(corpus: Path) -> None:
    """Adds every fifth document once more, with a line of its own at the end."""
    lines = corpus.read_text(encoding="utf-8").splitlines()
    with corpus.open("a", encoding="utf-8") as file:
        for number, line in enumerate(lines[::5]):
            file.write(json.dumps({"text": json.loads(line)["text"] + f"\n# copy {number}\n"}) + "\n")


def main() -> int:
    """Builds all of them and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=12, help="size of the corpus")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        corpus = home / "corpus.jsonl"
        write_corpus(corpus, args.megabytes * 1_000_000)
        plant_copies(corpus)
        tokenizer = TokenizerConfig(path=str(home / "tokenizer"), vocab_size=2000, training_megabytes=1)
        train_tokenizer(tokenizer, [SourceConfig(path=str(corpus))])
        seconds = build(home / "one", corpus, tokenizer, 1)
        expected, counts = content(home / "one"), Manifest.load(home / "one").counts
        print(f"one node: {seconds:.0f} s, {counts}")
        differ = 0
        for number, lost_in in enumerate(("", *LOST)):
            folder = home / f"two-{number}"
            seconds = build(folder, corpus, tokenizer, 2, lost_in)
            same = content(folder) == expected
            differ += not same
            words = f"two nodes, one lost in {lost_in}" if lost_in else "two nodes"
            print(f"{words}: {seconds:.0f} s, {'the same bytes' if same else 'OTHER BYTES'}", flush=True)
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
