"""Looks once, for all ranks, whether a dataset is what its manifest says and goes with the tokenizer beside it.

    open_dataset(data, tokenizer) -> Manifest      for a launcher: one listing of the folder
    read_dataset(data, tokenizer) -> Manifest      for a rank: reads the manifest, and no shard's name is looked up
    check_files(folder, manifest, sizes=True)      looks at every file besides: for inspection, not for a start

    earlier_dataset(folder, tokens)                what it was before sources were added, for a run that began with that

What these do not look at, each rank finds when it first reads a shard: a missing file, sizes, counts, checksums.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.mistakes import Mistake, shown
from data_pipeline.config import TokenizerConfig
from data_pipeline.manifest import FILE_NAME, Manifest, earlier_name
from data_pipeline.shards import ADVICE, SUFFIXES, shard_sizes

if TYPE_CHECKING:
    from data_pipeline.tokenizer import Tokenizer


def open_dataset(folder: str | Path, tokenizer: str | Path | TokenizerConfig | None = None) -> Manifest:
    """The manifest of a dataset whose files are there and whose ids are those of a tokenizer, if that is there.

    Raises ValueError, one sentence, otherwise.
    """
    manifest = read_dataset(folder, tokenizer)
    check_files(folder, manifest)
    return manifest


def read_dataset(folder: str | Path, tokenizer: str | Path | TokenizerConfig | None = None) -> Manifest:
    """The same, at a cost that does not depend on the number of files: whether they are there is not asked.

    Raises ValueError, one sentence, otherwise.
    """
    from data_pipeline.tokenizer import Tokenizer  # one rank needs it, the others need not wait for it
    from data_pipeline.tokenizing.finding import candidates

    manifest = Manifest.load(folder)
    if tokenizer is not None and candidates(_place(tokenizer)):
        check_tokenizer(folder, manifest, Tokenizer.load(tokenizer, "off"))
    return manifest


def earlier_dataset(folder: str | Path, tokens: str) -> Manifest | None:
    """What a dataset was, by the `tokens` of its fingerprints, before sources were added to it; None if never that."""
    name = earlier_name(tokens)
    if not (Path(folder) / name).is_file():
        return None
    manifest = Manifest.load(folder, name)
    return manifest if manifest.fingerprints["tokens"] == tokens else None


def _place(tokenizer: str | Path | TokenizerConfig) -> Path:
    return Path(tokenizer.path if isinstance(tokenizer, TokenizerConfig) else tokenizer)


def check_files(folder: str | Path, manifest: Manifest, *, sizes: bool = False) -> None:
    """ValueError when a file of a shard is missing, or with `sizes`, which asks for each file, has another size."""
    with os.scandir(folder) as entries:
        found = {entry.name: entry for entry in entries}
    for name, size in _expected_files(manifest):
        if name not in found:
            raise Mistake(f"{Path(folder) / name}: no such file, though {FILE_NAME} names it; {ADVICE}")
        if sizes and (there := found[name].stat().st_size) != size:
            raise Mistake(f"{Path(folder) / name}: {there} bytes where {size} were written; {ADVICE}")


def _expected_files(manifest: Manifest) -> Iterator[tuple[str, int]]:
    dtype = np.dtype(manifest.dtype)
    for table in manifest.splits.values():
        counts = zip(table.num_documents.tolist(), table.num_tokens.tolist(), strict=True)
        for name, (num_documents, num_tokens) in zip(table.names.tolist(), counts, strict=True):
            sizes = shard_sizes(num_documents, num_tokens, dtype)
            for suffix in SUFFIXES:
                yield name.decode() + suffix, sizes[suffix]


def check_tokenizer(folder: str | Path, manifest: Manifest, tokenizer: "Tokenizer") -> None:
    """ValueError when a dataset was made with another tokenizer, or when its manifest says other ids than that has.

    What a dataset of old does not tell is not asked.
    """
    theirs = tokenizer.record()
    if theirs["tokenizer_fingerprint"] != manifest.tokenizer_fingerprint:
        raise Mistake(
            f"tokenizer.path: {tokenizer.model_path} is not the tokenizer that {folder} was built with; "
            "name that one, or build the dataset anew with this one"
        )
    for key in theirs:
        if key in manifest.model_fields_set and getattr(manifest, key) != theirs[key]:
            named, ours, others = _first_difference(key, getattr(manifest, key), theirs[key])
            raise Mistake(
                f"{Path(folder) / FILE_NAME}: {named} is {shown(ours)} and {shown(others)} in {tokenizer.model_path}; "
                "restore the file, or build the dataset anew"
            )


def _first_difference(key: str, ours: Any, others: Any) -> tuple[str, Any, Any]:
    """Where two values of a key differ, by name, and what stands there in each; None where nothing does."""
    if not isinstance(ours, dict):
        return key, ours, others
    name = min(name for name in ours.keys() | others.keys() if ours.get(name) != others.get(name))
    return f"{key}.{name}", ours.get(name), others.get(name)
