"""Files of this machine that a pattern matches, through symbolic links as well as without them.

What a pattern means is fsspec's, as for files elsewhere; its own search, though, passes links by, and a cache of
Hugging Face or a folder of git-annex is made of links.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsspec.core import has_magic
from fsspec.utils import glob_translate

from common.mistakes import Mistake


def local_files(path: str) -> dict[str, dict[str, Any]]:
    """Type, size and time of change of the files that an absolute path or pattern names, by path.

    A folder is found only by its very name. Raises ValueError naming a link that points nowhere or leads round.
    """
    if not has_magic(path) or os.path.lexists(path):
        return {path: _info(path)} if os.path.lexists(path) else {}
    fixed = path[: min(path.index(mark) for mark in "*?[" if mark in path)].rpartition("/")[0] or "/"
    depth = None if "**" in path else path[len(fixed) :].strip("/").count("/") + 1
    matches = re.compile(glob_translate(path)).match
    found = {name: _info(name) for name in _walk(fixed, depth, ()) if matches(name)}
    return {name: info for name, info in found.items() if info["type"] == "file"}


def _walk(folder: str, depth: int | None, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Everything below a folder that is no folder itself, `depth` levels down; `above` are the folders it lies in."""
    try:
        status = Path(folder).stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    here = status.st_dev, status.st_ino
    if here in above:
        raise Mistake(
            f"{folder}: this link leads back to {Path(folder).resolve()}, which it lies in; "
            "remove it, or make the path of its source pass it by"
        )
    for entry in entries:
        path = f"{folder.rstrip('/')}/{entry.name}"
        if not entry.is_dir():
            yield path
        elif depth is None or depth > 1:
            yield from _walk(path, None if depth is None else depth - 1, (*above, here))


def _info(path: str) -> dict[str, Any]:
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise Mistake(
            f"{path}: this link points to {Path(path).readlink()}, which is not there; "
            "fetch that file, or remove the link"
        ) from None
    mode = status.st_mode
    kind = "directory" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"
    return {"type": kind, "size": status.st_size, "mtime": status.st_mtime}
