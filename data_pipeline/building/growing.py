"""Sources that are added to a finished dataset: only they are built, and the shards that are there stay as they are.

    build.json -> find_base -> Base    the dataset that is there, if it lacks nothing but later sources
    its tasks + new ones               numbered on, so that shards get names of their own
    its keys + new hashes -> copies    a document that is there already is dropped as any other copy

The larger dataset comes to be when `manifest.json` is replaced, at the very end; until then the folder holds the
smaller one, whole. `build.json` is written just before, with that of the smaller dataset within it, so that both are
told apart by the manifest that is there. The smaller one's manifest stays under another name: a run that began with it
goes on with it (opening.earlier_dataset).
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from common.mistakes import Mistake
from data_pipeline.building.folder import KEYS, check_sources_still, located, read_settings, settings_of
from data_pipeline.building.source_files import SourceFile, list_files
from data_pipeline.building.tasks import file_digest
from data_pipeline.config import DataConfig
from data_pipeline.manifest import FILE_NAME, Manifest, ShardTable
from data_pipeline.opening import check_files

SOURCES = "data.sources"


@dataclasses.dataclass(frozen=True)
class Base:
    """A finished dataset that sources are added to."""

    manifest: Manifest
    """What lies in its folder."""
    settings: dict[str, Any]
    """What it was built with, as its build.json tells."""

    @property
    def num_sources(self) -> int:
        """Sources it was built from."""
        return len(self.settings[SOURCES])

    @property
    def num_tasks(self) -> int:
        """A number above those of all its tasks."""
        names = [name for table in self.manifest.splits.values() for name in table.names.tolist()]
        return 1 + max(int(name.rpartition(b"-")[2]) for name in names)

    @property
    def keys(self) -> dict[str, str]:
        """Its files with the hashes of its documents, and the digest of each."""
        return self.settings.get(KEYS, {})

    def joined(self, split: str, added: ShardTable) -> ShardTable:
        """Its shards of a split and then the added ones."""
        return ShardTable.joined([self.manifest.splits.get(split, ShardTable.of([])), added])

    def summed(self, added: dict[str, int]) -> dict[str, int]:
        """Its counts and those of what is added."""
        counts = self.manifest.counts
        return {key: counts.get(key, 0) + added.get(key, 0) for key in {**counts, **added}}

    def num_keys(self, folder: Path) -> int:
        """Documents whose hashes it has."""
        return sum(len(np.load(folder / name, mmap_mode="r")) for name in self.keys)


def find_base(config: DataConfig, wanted: dict[str, Any]) -> Base | None:
    """The dataset that is there, if it was built with these very settings but for sources that come later in the list.

    Raises ValueError when it is, and sources cannot be added to it.
    """
    folder = Path(config.path)
    if not (folder / FILE_NAME).exists():
        return None
    manifest = Manifest.load(folder)
    found = read_settings(folder, manifest)
    if not _lacks_later_sources(found, wanted):
        return None
    base = Base(manifest, found)
    if len(manifest.sources) != base.num_sources:
        raise Mistake(
            f"data.sources: {folder} was built before shards knew their sources, so none can be added to it; "
            "choose another data.path for the new sources, or delete that folder to build all anew"
        )
    check_files(folder, manifest, sizes=True)
    check_sources_still(config.model_copy(update={"sources": config.sources[: base.num_sources]}), folder, manifest)
    if config.deduplicate.documents == "near" or config.deduplicate.lines != "none":
        raise Mistake(
            f"data.sources: sources can be added to a dataset with deduplicate none or exact, and {folder} was built "
            f"with {config.deduplicate.model_dump()}; choose another data.path for them, or delete that folder to "
            "build all anew"
        )
    if config.deduplicate.documents == "exact":
        _check_keys(folder, base)
    return base


def _lacks_later_sources(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    there, sources = found.get(SOURCES), wanted[SOURCES]
    if not isinstance(there, list) or not 0 < len(there) < len(sources):
        return False
    same = {**settings_of(found), SOURCES: None} == {**wanted, SOURCES: None}
    return same and located(there) == located(sources[: len(there)])


def _check_keys(folder: Path, base: Base) -> None:
    """ValueError when the hashes of the documents that are there are not, or are not as they were written."""
    advice = "choose another data.path for the new sources, or delete that folder to build all anew"
    if not base.keys:
        raise Mistake(
            f"data.sources: {folder} was built by a version that kept no hashes of its documents, so copies of them "
            f"could not be found in the sources that are added; {advice}"
        )
    for name, digest in base.keys.items():
        if file_digest(folder / name) != digest:
            raise Mistake(f"{folder / name}: is missing or damaged, so copies could not be found; {advice}")


def added_files(config: DataConfig, base: Base | None) -> list[SourceFile]:
    """The files of the sources that are built now, each with the number of its source in the config."""
    first = base.num_sources if base else 0
    files = list_files(config.sources[first:])
    return [dataclasses.replace(file, source=file.source + first) for file in files]
