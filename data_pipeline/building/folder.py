"""The folder a build writes to: what is in it before, who may write, and what is left in the end.

data.path/build.json, manifest.json, train-00000.* ...   a finished dataset; with filters dropped.jsonl, too
data.path/manifest-....json                              what it was before sources were added, for runs that go on
data.path/keys-00000-....npy ...                         hashes of its documents, for sources that are added (growing)
data.path/.shardline-build/                              an unfinished one: plan, markers, lock

Only the plan in that folder makes it and the shards beside it ours to delete, and never those of a manifest.
"""

import contextlib
import dataclasses
import fcntl
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from common.files import meant_name, read_file, sweep, write_whole
from common.json_lines import parse_json, read_lines
from common.mistakes import SHOWN_PATH, Mistake, cut
from data_pipeline.building.near.report import FILE_NAME as CLUSTERS_NAME
from data_pipeline.building.near.report import read_clusters, write_clusters
from data_pipeline.building.source_files import SourceFile, list_files
from data_pipeline.building.sources import Unit
from data_pipeline.building.tasks import SPLITS, WORK_NAME, Job, dropped_samples, write_json
from data_pipeline.config import DataConfig
from data_pipeline.filters.chain import decisive
from data_pipeline.manifest import FILE_NAME, Manifest, ShardInfo, ShardTable, SourceCounts, earlier_name
from data_pipeline.opening import check_files, check_tokenizer
from data_pipeline.tokenizer import Tokenizer

if TYPE_CHECKING:
    from data_pipeline.building.growing import Base

SETTINGS_NAME = "build.json"
SOURCE_FILES, KEYS, GROWN_FROM = "source_files", "document_keys", "grown_from"
"""What build.json holds besides settings: the state of the sources' files, digests of the files with the hashes of
documents, and what the dataset was before sources were added to it."""
KEYS_FILE = re.compile(r"keys-\d{5,}-[0-9a-f]{12}\.npy")
DROPPED_NAME = "dropped.jsonl"
"""Some of the documents that filters dropped: a few of each source for each reason."""
SHARD_FILE = re.compile(r"(train|validation)-\d{5,}\.(bin|idx|sums)")
PLAN_NAME = "plan.json"
UNITS_NAME = "units.json"
"""What an interrupted build had found out about its files, so that the next one need not open them to plan."""
DECISIVE_KEYS = {
    "sources",
    "unicode_normalization",
    "min_characters",
    "max_characters",
    "deduplicate",
    "validation_fraction",
    "shard_megabytes",
}
"""Keys of `data:` that decide which tokens are written and into which shards; the others do not."""


def fingerprint(value: Any) -> str:
    """Hash of a value that JSON can hold, xxh3_128 hex."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True).encode())


def decisive_settings(config: DataConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """All that decides a dataset besides the content of the sources, by key of the config file."""
    keys = config.model_dump(include=DECISIVE_KEYS, exclude={"sources": {"__all__": {"name"}}})
    keys |= {"deduplicate": config.deduplicate.decisive}
    if config.filters:  # a key that came later: without it, settings are those of datasets from before
        keys["filters"] = [decisive(settings) for settings in config.filters]
    return {**{f"data.{key}": keys[key] for key in sorted(keys)}, "tokenizer": tokenizer.fingerprint}


# ---- a dataset that is there


def reuse(config: DataConfig, tokenizer: Tokenizer, wanted: dict[str, Any]) -> Manifest:
    """The manifest of the dataset that is there, if it is what these settings would build.

    Sources that are gone since do not matter. Raises ValueError naming what differs.
    """
    folder = Path(config.path)
    manifest = Manifest.load(folder)
    if config.sources and manifest.config_fingerprint != fingerprint(wanted):
        _refuse(folder, wanted, read_settings(folder, manifest))
    if manifest.tokenizer_fingerprint != wanted["tokenizer"]:
        raise Mistake(
            f"data.path: {folder} was built with another tokenizer; choose another data.path or delete that folder"
        )
    check_tokenizer(folder, manifest, tokenizer)
    check_files(folder, manifest, sizes=True)
    check_sources_still(config, folder, manifest)
    if not _is_being_written(folder / WORK_NAME):
        clear_leftovers(folder, manifest)
    return _with_names(config, folder, manifest)


def _with_names(config: DataConfig, folder: Path, manifest: Manifest) -> Manifest:
    """The manifest with the names that the config gives the sources, which decide nothing else."""
    pairs = list(zip(config.source_names, manifest.sources, strict=False))
    if len(pairs) != len(manifest.sources) or all(name == source.name for name, source in pairs):
        return manifest
    named = [source.model_copy(update={"name": name}) for name, source in pairs]
    renamed = manifest.model_copy(update={"sources": named})
    renamed.save(folder)
    return renamed


def _is_being_written(work: Path) -> bool:
    """Whether a build is at it right now, such as one that adds sources."""
    try:
        with (work / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False


def settings_of(found: dict[str, Any]) -> dict[str, Any]:
    """What decided a dataset, of all that its build.json holds."""
    return {key: value for key, value in found.items() if key not in (SOURCE_FILES, KEYS, GROWN_FROM)}


def _refuse(folder: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Raises ValueError naming what differs, unless it is only how the paths of the sources are written."""
    advice = "choose another data.path or delete that folder"
    # keys that came later are left out where they have their defaults
    wanted = {**dict.fromkeys(settings_of(found)), **wanted}
    if {key: located(found.get(key, ...)) for key in wanted} == {key: located(wanted[key]) for key in wanted}:
        return
    try:
        key = next(key for key in wanted if found[key] != wanted[key])
    except (KeyError, StopIteration):
        raise Mistake(f"data.path: {folder} was built with other settings; {advice}") from None
    values = "another tokenizer" if key == "tokenizer" else f"{key} {_shown(found[key])}, not {_shown(wanted[key])}"
    raise Mistake(f"data.path: {folder} was built with {values}; {advice}")


def located(setting: Any) -> Any:
    """A setting as it is compared: sources with their paths as they are called from anywhere."""
    if not isinstance(setting, list):
        return setting
    return [
        {**entry, "path": str(Path(entry["path"]).expanduser().absolute())}
        if "path" in entry and "://" not in entry["path"]
        else entry
        for entry in setting
    ]


def read_settings(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """What the dataset of this manifest was built with, empty if its file is gone or broken."""
    try:
        found = parse_json(read_file(folder / SETTINGS_NAME))
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    before = found.pop(GROWN_FROM, None)
    settings = {key: value for key, value in found.items() if key not in (SOURCE_FILES, KEYS)}
    # a build that adds sources may have been stopped between the one file and the other
    is_ahead = isinstance(before, dict) and fingerprint(settings) != manifest.config_fingerprint
    return before if is_ahead else found


def _shown(value: Any) -> str:
    return cut(json.dumps(value, ensure_ascii=False), SHOWN_PATH)


def check_sources_still(config: DataConfig, folder: Path, manifest: Manifest) -> None:
    """ValueError when the sources are there and their files are not those that the dataset was built from."""
    try:
        files = list_files(config.sources)
    except (ValueError, OSError):
        return  # they may well be gone by now
    counts = file_counts(files)
    found = {key: manifest.counts.get(key) for key in counts}
    if config.sources and found != counts:
        raise Mistake(
            f"data.path: {folder} was built from {found['source_files']} files of {found['source_file_bytes']} bytes, "
            f"the sources are {counts['source_files']} of {counts['source_file_bytes']} now; "
            "choose another data.path or delete that folder"
        )
    if config.sources and read_settings(folder, manifest).get(SOURCE_FILES) not in (None, files_fingerprint(files)):
        raise Mistake(
            f"data.path: {folder} was built before a file of the sources was last changed; "
            "choose another data.path or delete that folder"
        )


def files_fingerprint(files: Sequence[SourceFile]) -> str:
    """Hash of the names, sizes and times of the source files, wherever their folder is mounted."""
    return fingerprint([[file.url.rpartition("/")[2], file.size, file.modified] for file in files])


def file_counts(files: Sequence[SourceFile]) -> dict[str, int]:
    """What the manifest says about the source files."""
    return {"source_files": len(files), "source_file_bytes": sum(file.size for file in files)}


def clear_leftovers(folder: Path, manifest: Manifest) -> None:
    """Deletes what a build with a plan wrote besides the shards of the manifest; files of others stay."""
    work = folder / WORK_NAME
    if _read_plan(work) is None:
        return
    _delete_shards(folder, _shard_names(manifest))
    keys = read_settings(folder, manifest).get(KEYS, {})
    for path in folder.iterdir():
        if KEYS_FILE.fullmatch(path.name) and path.name not in keys:
            path.unlink(missing_ok=True)
    # the plan says that the rest is ours, so it goes last
    _delete_work(work, keep={PLAN_NAME})
    (work / PLAN_NAME).unlink(missing_ok=True)
    # a worker that outlived its build may still write there
    with contextlib.suppress(OSError):
        work.rmdir()


def _shard_names(manifest: Manifest | None) -> set[str]:
    tables = manifest.splits.values() if manifest else ()
    return {name.decode() for table in tables for name in table.names.tolist()}


def _there(folder: Path) -> set[str]:
    """Shards of the dataset that is there, if one is: a build that adds to it leaves them alone."""
    return _shard_names(Manifest.load(folder) if (folder / FILE_NAME).exists() else None)


def _delete_shards(folder: Path, keep: Collection[str]) -> None:
    for path in folder.iterdir():
        name = meant_name(path.name) or path.name
        if SHARD_FILE.fullmatch(name) and (name != path.name or name.partition(".")[0] not in keep):
            path.unlink(missing_ok=True)


def _delete_work(work: Path, keep: Collection[str]) -> None:
    for path in work.iterdir():
        if path.name not in keep:
            path.unlink(missing_ok=True)


def _read_plan(work: Path) -> dict[str, Any] | None:
    """What build the folder is of, None if it holds no plan of ours."""
    try:
        plan = parse_json(read_file(work / PLAN_NAME))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return plan if isinstance(plan, dict) and "fingerprint" in plan else None


# ---- a dataset in the making


def plan_fingerprint(settings: dict[str, Any], files: Sequence[SourceFile], *base: str) -> str:
    """Hash of all that decides the tasks of a build, so that only a build of the same ones goes on with them.

    `base` tells the dataset that they are added to.
    """
    facts: list[Any] = [settings, [dataclasses.astuple(file) for file in files], *base]
    if len({file.source for file in files}) > 1:
        facts.append("tasks of one source")  # older versions put several into one
    return fingerprint(facts)


def planned_units(folder: Path, plan: str) -> list[Unit] | None:
    """The units of an interrupted build with this very plan; None where there is none."""
    work = folder / WORK_NAME
    found = _read_plan(work)
    if found is None or found["fingerprint"] != plan:
        return None
    try:
        return [Unit(*values) for values in parse_json(read_file(work / UNITS_NAME))]
    except (FileNotFoundError, ValueError, TypeError):
        return None


def remember_units(job: Job, units: Sequence[Unit]) -> None:
    """Keeps the units of a build for the case that it is interrupted."""
    if not (job.work / UNITS_NAME).exists():
        write_json(job.work / UNITS_NAME, [dataclasses.astuple(unit) for unit in units])


@contextlib.contextmanager
def work_folder(job: Job) -> Iterator[None]:
    """Keeps other builds out, and keeps what an interrupted build of the very same job has done.

    Raises ValueError when another build is writing to the folder, or when files lie where it would write that no
    build of ours has left.
    """
    _refuse_strangers(job)
    job.work.mkdir(parents=True, exist_ok=True)
    with (job.work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Mistake(
                f"data.path: another build is writing to {job.folder}; wait for it or choose another data.path"
            ) from None
        _keep_if_same(job)
        yield


def _refuse_strangers(job: Job) -> None:
    if not job.folder.exists() or _read_plan(job.work) is not None:
        return
    if not job.folder.is_dir():
        raise Mistake(f"data.path: {job.folder} is a file; give a folder")
    if job.work.exists() and not job.work.is_dir():
        raise Mistake(f"data.path: {job.work} is not a folder of a build; move it away or choose another data.path")
    # a build that was killed before it wrote its plan has left a lock
    work = sorted(job.work.iterdir()) if job.work.exists() else []
    found = [path for path in work if path.name != "lock" and meant_name(path.name) != PLAN_NAME]
    shards, there = (path for path in job.folder.iterdir() if SHARD_FILE.fullmatch(path.name)), _there(job.folder)
    found += sorted(path for path in shards if path.name.partition(".")[0] not in there)
    if found:
        raise Mistake(
            f"data.path: {found[0]} lies where shards are built, and no {FILE_NAME} or {PLAN_NAME} says it is from a "
            "build; move it away or choose another data.path"
        )


def _keep_if_same(job: Job) -> None:
    plan = _read_plan(job.work)
    if plan is None or plan["fingerprint"] != job.fingerprint:
        if plan is not None:
            _delete_shards(job.folder, keep=_there(job.folder))
            (job.folder / CLUSTERS_NAME).unlink(missing_ok=True)
        _delete_work(job.work, keep={"lock", PLAN_NAME})
        write_json(job.work / PLAN_NAME, {"fingerprint": job.fingerprint})
    sweep(job.work.iterdir())
    sweep(path for path in job.folder.iterdir() if SHARD_FILE.fullmatch(meant_name(path.name) or ""))
    job.stop_file.unlink(missing_ok=True)


def finish(
    job: Job,
    tokenizer: Tokenizer,
    settings: dict[str, Any],
    files: Sequence[SourceFile],
    results: list[dict[str, Any]],
    base: "Base | None" = None,
) -> Manifest:
    """Makes a dataset of the finished tasks and of the one they add to: settings, then the manifest, then nothing else.

    Raises ValueError when a source gave no document or none is left to train on.
    """
    _check_sources(job.data, results, base.num_sources if base else 0)
    shards = {split: _shards_of(results, split) for split in SPLITS}
    counts = {**file_counts(files), **_document_counts(results), **_line_counts(results)}
    manifest = Manifest(
        **tokenizer.record(),
        config_fingerprint=fingerprint(settings),
        splits={split: base.joined(split, table) for split, table in shards.items()} if base else shards,
        counts=base.summed(counts) if base else counts,
        sources=_counts_by_source(job.data, results, base.manifest.sources if base else []),
    )
    if not manifest.num_documents("train"):
        raise Mistake(
            f"data.sources: no document is left to train on ({_described(manifest.counts)}); "
            "relax data.min_characters, data.max_characters, data.validation_fraction or data.filters, "
            "or give more text"
        )
    if job.data.deduplicate.documents == "near":
        write_clusters(job.folder, job.data, read_clusters(job.work), results)
    if job.data.filters:
        _write_dropped(job, results, base)
    recorded = {SOURCE_FILES: _source_files(job.data, files, base), KEYS: _keep_keys(job)}
    before = {GROWN_FROM: base.settings} if base else {}
    write_json(job.folder / SETTINGS_NAME, {**settings, **recorded, **before})
    if base:
        base.manifest.save(job.folder, earlier_name(base.manifest.fingerprints["tokens"]))
    manifest.save(job.folder)
    clear_leftovers(job.folder, manifest)
    return manifest


def _write_dropped(job: Job, results: list[dict[str, Any]], base: "Base | None") -> None:
    """Puts documents that filters dropped behind those of the dataset that is added to."""
    path = job.folder / DROPPED_NAME
    there = [line for line in read_lines(path) if line.get("source", 0) < base.num_sources] if base else []
    samples = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in [*there, *dropped_samples(job, results)])
    write_whole(path, "".join(samples).encode())


def _source_files(config: DataConfig, files: Sequence[SourceFile], base: "Base | None") -> str | None:
    """Hash of the state of all sources' files; None where those of the dataset added to are gone."""
    if base is None:
        return files_fingerprint(files)
    try:
        return files_fingerprint([*list_files(config.sources[: base.num_sources]), *files])
    except (ValueError, OSError):
        return None


def _keep_keys(job: Job) -> dict[str, str]:
    """Puts the hashes of all documents beside the shards; digests of these files by their names."""
    kept: dict[str, str] = {}
    digests = parse_json(read_file(job.keys_file)) if job.keys_file.exists() else []
    for index, digest in enumerate(digests):
        name = f"keys-{index:05d}-{digest[:12]}.npy"
        job.hashes.keys_path(index).replace(job.folder / name)
        kept[name] = digest
    return kept


def _check_sources(config: DataConfig, results: list[dict[str, Any]], first: int) -> None:
    for number, source in enumerate(config.sources[first:], start=first):
        if not any(result["read"].get(str(number)) for result in results):
            rejected = Counter[str]()
            for result in results:
                rejected.update({reason: count for which, reason, count in result["rejects"] if which == number})
            raise Mistake(
                f"data.sources[{number}].path: '{source.path}' holds no usable document ({_described(rejected)}); "
                "correct its path, format or text_key, or take the source out"
            )


def _described(counts: dict[str, int]) -> str:
    return ", ".join(f"{key} {count}" for key, count in counts.items() if count) or "its files are empty"


def _shards_of(results: list[dict[str, Any]], split: str) -> ShardTable:
    made = [(result["shards"][split], _source(result)) for result in results if split in result["shards"]]
    return ShardTable.of([ShardInfo(**shard, source=source) for shard, source in made])


def _source(result: dict[str, Any]) -> int:
    """Number of the source of a task; tasks that an older version has done say none, and were of the only one."""
    return result.get("source", 0)


def _counts_by_source(
    config: DataConfig, results: list[dict[str, Any]], before: Sequence[SourceCounts]
) -> list[SourceCounts]:
    """Of every source; those `before` were there already, and have the names of today."""
    of_source: list[list[dict[str, Any]]] = [[] for _ in config.sources]
    for result in results:
        of_source[_source(result)].append(result)
    counts = [*(source.counts for source in before), *map(_document_counts, of_source[len(before) :])]
    return [SourceCounts(name=name, counts=mine) for name, mine in zip(config.source_names, counts, strict=True)]


def _document_counts(results: list[dict[str, Any]]) -> dict[str, int]:
    dropped = Counter[str]()
    for result in results:
        for _, reason, count in result["rejects"]:
            dropped[reason] += count
        if result["repeats"]:
            dropped["repeated"] += result["repeats"]
        if near_copies := result.get("near_copies", 0):
            dropped["near_copy"] += near_copies
    changes = Counter[str]()
    for result in results:
        changes.update(result.get("changes", {}))
    kept = sum(shard["num_documents"] for result in results for shard in result["shards"].values())
    counts = {"documents_read": kept + sum(dropped.values()), "documents_kept": kept}
    counts.update({f"dropped_{reason}": dropped[reason] for reason in sorted(dropped)})
    return {**counts, **{f"replaced_{what}": changes[what] for what in sorted(changes)}}


def _line_counts(results: list[dict[str, Any]]) -> dict[str, int]:
    """Repeated lines that were taken out of documents, where the settings ask for that."""
    lines = Counter[str]()
    for result in results:
        lines.update(result.get("repeated_lines", {}))
    return {f"repeated_lines_{what}": count for what, count in sorted(lines.items())}
