"""Which files the sources mean: globs and URLs in, a sorted list of files with their format out.

Every mistake a user can make here (nothing matches, a folder, an unknown kind of file) is a ValueError of one
sentence that names the key and says what to do.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from fsspec.core import has_magic, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from common.mistakes import Mistake
from data_pipeline.building.dataset_folders import dataset_files
from data_pipeline.building.formats.pages import FORMATS as PAGE_FORMATS
from data_pipeline.building.formats.pages import check_packages
from data_pipeline.building.local_files import local_files
from data_pipeline.building.remote_files import patiently
from data_pipeline.config import SourceConfig

ARROW = ("auto", "arrow")
"""Formats by which a folder may be a source: that of a dataset."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".jl": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".warc": "warc",
    ".csv": "csv",
    ".tsv": "tsv",
}
TEXT = (
    "adoc asm bash bib bst c c++ cc cfg clj cls cmake conf cpp cs css cu cxx dart el erl ex f f90 fs go gradle "
    "groovy h hpp hs htm html hxx ini java jl js jsx kt lean less lisp log lua m markdown md mk ml org patch "
    "php pl po pod properties proto ps1 py pyi pyx r rb rs rst rtf sass scala scm scss sed sh sql srt sty "
    "svelte sv swift tcl tex texi text toml ts tsx txt v vb vhdl vim vtt vue wiki xhtml xml yaml yml zig"
)
"""Endings of files that `format: auto` takes for plain text; docs/data.md names the kinds."""
FORMATS = dict.fromkeys((f".{ending}" for ending in TEXT.split()), "text") | FORMATS
UNREADABLE = {
    ".bz2": "recompress it as .gz or .zst",
    ".xz": "recompress it as .gz or .zst",
    ".lz4": "recompress it as .gz or .zst",
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".tgz": "unpack it",
    ".7z": "unpack it",
    ".json": "set format: jsonl if each line is one JSON object, or text to take the file as it is",
    ".avro": "write it as parquet",
    ".idx": "set format: megatron if it is an index of Megatron-LM",
    ".bin": "set format: megatron if it holds ids of Megatron-LM",
    ".npy": "write its text as jsonl or parquet",
    ".pdf": "extract its text first",
}


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One file of one source."""

    source: int
    """Number of the source in the config."""
    url: str
    """Absolute path, or the URL of a file elsewhere."""
    size: int
    """Bytes as stored."""
    modified: str
    """Whatever the file system tells about the time of the last change."""
    format: str
    """One of those that SourceConfig.format names, but auto."""
    compression: str | None
    """gzip, zstd or None."""


def list_files(sources: Sequence[SourceConfig]) -> list[SourceFile]:
    """All files of all sources: source by source, each sorted by path.

    Raises ValueError when a source matches nothing or something that cannot be read.
    """
    return [file for number, source in enumerate(sources) for file in _list_source(number, source)]


def _list_source(number: int, source: SourceConfig) -> list[SourceFile]:
    key = f"data.sources[{number}].path"
    system, path = _file_system(key, source.path)
    local = isinstance(system, LocalFileSystem)
    if local:
        found = local_files(path)
    else:
        found = patiently(f"{key}: '{source.path}' cannot be listed", lambda: _remote_files(system, path))
    if source.format == "megatron":
        found = _indices(key, source.path, system, path, found)
    if any(info["type"] == "directory" for info in found.values()):
        found = _files_of_dataset(key, source, system, next(iter(found)))
    if not found:
        raise Mistake(
            f"{key}: no file matches '{source.path}' (looked in {_fixed_part(path)}); correct the pattern or the mount"
        )
    return [
        _describe(number, source, name if local else system.unstrip_protocol(name), found[name])
        for name in sorted(found)
    ]


def _files_of_dataset(key: str, source: SourceConfig, system, path: str) -> dict[str, dict]:
    """The files of a folder, where it is a dataset of Hugging Face."""
    names = dataset_files(path, lambda name: _content(system, f"{path}/{name}")) if source.format in ARROW else None
    if names is None:
        raise Mistake(
            f"{key}: '{source.path}' is a folder; say which files in it, such as '{source.path.rstrip('/')}/**/*.jsonl'"
        )
    found = {name: _one_file(system, f"{path}/{name}") for name in names}
    missing = next((name for name in names if not found[name]), None)
    if missing is not None:
        raise Mistake(f"{key}: '{source.path}' lacks {missing}, which it says it consists of; copy the folder again")
    return {path: info for file in found.values() for path, info in file.items()}


def _indices(key: str, given: str, system, path: str, found: dict[str, dict]) -> dict[str, dict]:
    """The indices among files of Megatron-LM, or that of a prefix, each with the size and time of its .bin too."""
    if not found and not has_magic(path):
        found = _one_file(system, f"{path}.idx")
    other = next((name for name in found if not name.endswith((".idx", ".bin"))), None)
    if other is not None:
        raise Mistake(f"{key}: '{given}' means {other}, and format megatron reads .idx with .bin; name the .idx")
    both = {}
    for name in (name.removesuffix(".bin").removesuffix(".idx") for name in found):
        index, tokens = (
            {**found, **_one_file(system, name + suffix)}.get(name + suffix) for suffix in (".idx", ".bin")
        )
        if index is None or tokens is None:
            raise Mistake(f"{key}: {name}{'.bin' if index else '.idx'} is missing; both of .idx and .bin are needed")
        modified = f"{_modified(index)} {_modified(tokens)}"
        both[f"{name}.idx"] = {"type": "file", "size": index["size"] + tokens["size"], "mtime": modified}
    return both


def _modified(info: dict) -> str:
    return str(next((info[key] for key in ("mtime", "LastModified", "updated", "ETag") if info.get(key)), ""))


def _content(system, path: str) -> bytes:
    """Content of a small file; FileNotFoundError when there is none."""
    what = f"{path}: cannot be read"
    if not patiently(what, lambda: system.exists(path)):
        raise FileNotFoundError(path)
    return patiently(what, lambda: system.cat_file(path))


def _one_file(system, path: str) -> dict[str, dict]:
    if isinstance(system, LocalFileSystem):
        return local_files(path)
    return patiently(f"{path}: cannot be looked up", lambda: _remote_files(system, path))


def _file_system(key: str, path: str):
    try:
        return url_to_fs(path)
    except ImportError as error:
        raise Mistake(f"{key}: '{path}' cannot be opened: {error}; install that package") from None
    except ValueError as error:
        raise Mistake(f"{key}: '{path}' cannot be opened: {error}; write a path or an fsspec URL") from None


def _remote_files(system, path: str) -> dict[str, dict]:
    if has_magic(path) and not system.exists(path):
        return {name: info for name, info in system.glob(path, detail=True).items() if info["type"] == "file"}
    try:
        return {path: system.info(path)}
    except FileNotFoundError:
        return {}


def _fixed_part(path: str) -> str:
    """The folder in front of the first wildcard."""
    parts = PurePosixPath(path).parts
    fixed = next((index for index, part in enumerate(parts) if has_magic(part)), len(parts) - 1)
    return str(PurePosixPath(*parts[:fixed])) if fixed else "."


def _describe(number: int, source: SourceConfig, url: str, info: dict) -> SourceFile:
    ending, compression = _ending(PurePosixPath(url).name.lower())
    chosen: str = source.format
    if chosen == "auto":
        if ending in UNREADABLE:
            raise Mistake(f"{url}: {ending} files are not read as they are; {UNREADABLE[ending]}")
        if ending not in FORMATS:
            what = f"{ending} is no ending that is known" if ending else "a name without an ending tells no format"
            raise Mistake(
                f"{url}: {what}; set format of data.sources[{number}] to jsonl, parquet, arrow, csv, tsv, text, "
                "html, warc or megatron, or make its path match fewer files"
            )
        chosen = FORMATS[ending]
    if chosen in PAGE_FORMATS:
        check_packages(url, chosen)
    if chosen in ("parquet", "arrow", "megatron") and compression:
        raise Mistake(f"{url}: a {chosen} file compressed once more cannot be read in parts; decompress it")
    return SourceFile(number, url, int(info["size"] or 0), _modified(info), chosen, compression)


def _ending(name: str) -> tuple[str, str | None]:
    """What tells the format, such as `.jsonl` of `a.jsonl.gz` and of `a.jsonl.1`, and the compression."""
    compression = None
    while True:
        ending = PurePosixPath(name).suffix
        if ending in COMPRESSIONS and compression is None:
            compression = COMPRESSIONS[ending]
        elif not re.fullmatch(r"\.\d+", ending):
            return ending, compression
        name = name.removesuffix(ending)
