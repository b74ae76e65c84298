"""Paths in configs: which keys hold them, and where relative ones start.

In a file that a user writes they start from the working folder. The config that a run keeps in its folder holds
absolute ones, so that the run can be asked about and taken up from anywhere.
"""

import copy
import glob
import os
from pathlib import Path
from typing import Any

from common.mistakes import Mistake

CONFIG = "config.yaml"
PATTERNS = ("data.sources.*.path",)
KEYS = (
    *("runs_dir", "tokenizer.path", "data.path", *PATTERNS, "data.filters.*.files"),
    *("data.mix.sources.*.path", "training.initial_weights"),
)
"""Every key that names files or folders; `*` is each item of a list. Those of PATTERNS may hold wildcards."""


def anchored(tree: dict[str, Any], base: Path) -> dict[str, Any]:
    """The tree of a config with paths that start from `base`; URLs and absolute paths stay."""
    moved = copy.deepcopy(tree)
    for key in KEYS:
        *parents, last = key.split(".")
        nodes: list[Any] = [moved]
        for part in parents:
            nodes = [child for node in nodes for child in _children(node, part)]
        for node in nodes:
            value = node.get(last) if isinstance(node, dict) else None
            if isinstance(value, str) and value:
                node[last] = _located(value, base, is_pattern=key in PATTERNS)
            elif isinstance(value, list):
                node[last] = [
                    _located(each, base, is_pattern=False) if isinstance(each, str) else each for each in value
                ]
    return moved


def _children(node: Any, part: str) -> list[Any]:
    if part == "*":
        return node if isinstance(node, list) else []
    return [node[part]] if isinstance(node, dict) and part in node else []


def _located(path: str, base: Path, *, is_pattern: bool) -> str:
    if path.startswith(("/", "~")) or "://" in path or "::" in path:
        return path
    # as where sources are read: what is there by this very name is no pattern
    has_wildcards = is_pattern and glob.has_magic(path) and not os.path.lexists(base / path)
    return f"{glob.escape(str(base)) if has_wildcards else base}/{path}"


def is_run(folder: Path) -> bool:
    """Whether a run has left something in this folder that is worth going on with."""
    return any((folder / name).is_file() for name in ("events.jsonl", "metrics.jsonl", "checkpoints/latest"))


def base_of(file: Path, tree: dict[str, Any]) -> Path | None:
    """The folder from which the relative paths of a run's own config start: where its runs_dir does.

    None for a file that lies in no run's folder, or where the folder has another name than runs_dir says.
    """
    home, runs = file.absolute().parent, tree.get("runs_dir", "runs")
    if file.name != CONFIG or not is_run(home) or not isinstance(runs, str):
        return None
    parts, end = home.parent.parts, Path(runs).parts
    base = parts[: len(parts) - len(end)]
    return Path(*base) if base and base + end == parts else None


def refuse_misplaced(file: Path, own: Path, meant: Path) -> None:
    """Refuses to begin a new run with the config of another one that was renamed or moved.

    `own` is the run's folder by the file itself, `meant` with what the command line changed. Raises ValueError.
    """
    home = file.absolute().parent
    if file.name != CONFIG or not is_run(home) or home.resolve() in (own.resolve(), meant.resolve()):
        return
    changes = [f"--set name={home.name}"] if own.name != home.name else []
    changes += [f"--set runs_dir={home.parent}"] if own.parent.resolve() != home.parent.resolve() else []
    raise Mistake(
        f"{file}: this run's folder was renamed, moved or copied, for its config says {own}, where another run would "
        f"begin; to go on with the one in {home} add {' '.join(changes)}, and set tokenizer.path and data.path too if "
        "they have moved"
    )
