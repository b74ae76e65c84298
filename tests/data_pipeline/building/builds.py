"""Small builds: their settings, their sources, and what they wrote."""

import hashlib
import itertools
import json
from pathlib import Path

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.manifest import Manifest
from data_pipeline.shards import ShardReader


def settings(folder, *paths, **keys):
    sources = [SourceConfig(path=str(path)) for path in paths]
    return DataConfig(**{"path": str(folder), "sources": sources, "shard_megabytes": 0.3, **keys})


def write_json_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def digests(folder):
    """Hash of every file of a finished dataset."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def documents(folder, split="train"):
    """Token lists of all documents of a split, in order."""
    result = []
    for shard in Manifest.load(folder).splits[split]:
        reader = ShardReader(Path(folder) / shard.name)
        starts = [*reader.boundaries(0, reader.num_tokens).tolist(), reader.num_tokens]
        result += [reader.tokens(*ends).tolist() for ends in itertools.pairwise(starts)]
    return result
