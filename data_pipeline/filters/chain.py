"""The filters of a config, made ready: names and thresholds in, a list of steps out that run in that order."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from data_pipeline.filters.c4 import c4
from data_pipeline.filters.characters import characters
from data_pipeline.filters.decontaminate import Decontamination, Overlaps, digest, find_overlaps
from data_pipeline.filters.document import Document, Dropped
from data_pipeline.filters.fineweb import fineweb
from data_pipeline.filters.gopher import gopher_quality, gopher_repetition
from data_pipeline.filters.language import language, model
from data_pipeline.filters.personal_data import personal_data
from data_pipeline.filters.settings import Decontaminate, FilterSettings, Language

Filter = Callable[[Document], Document | Dropped]

FUNCTIONS: dict[str, Callable] = {
    function.__name__: function
    for function in (gopher_quality, gopher_repetition, c4, fineweb, language, characters, personal_data)
}
"""Filters that need nothing but their thresholds."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One filter of a config."""

    name: str
    """As in the config; reasons begin with it."""
    apply: Filter


def make_steps(filters: Sequence[FilterSettings], folder: Path | None = None) -> list[Step]:
    """The filters, in their order; `folder` is where `save_tables` has been, else files of questions are read.

    Raises ValueError when a package or a file that one needs is not there.
    """
    return [Step(settings.name, _filter(settings, folder)) for settings in filters]


def _filter(settings: FilterSettings, folder: Path | None) -> Filter:
    if isinstance(settings, Decontaminate):
        overlaps = Overlaps.load(_table(settings, folder)) if folder else find_overlaps(settings)
        return Decontamination(overlaps)
    if isinstance(settings, Language):
        model()
    return functools.partial(FUNCTIONS[settings.name], settings=settings)


def apply_steps(steps: Sequence[Step], document: Document) -> Document | Dropped:
    """Runs filters until one drops the document; the reason then begins with its name, as `c4.few_sentences`."""
    for step in steps:
        result = step.apply(document)
        if isinstance(result, Dropped):
            return Dropped(f"{step.name}.{result.reason}")
        document = result
    return document


# ---- tables that are made once for all processes


def save_tables(filters: Sequence[FilterSettings], folder: Path) -> None:
    """Writes what filters have to look up, once, for the processes that will run them."""
    for settings in filters:
        if isinstance(settings, Decontaminate) and not _table(settings, folder).exists():
            find_overlaps(settings).save(_table(settings, folder))


def _table(settings: Decontaminate, folder: Path) -> Path:
    return folder / f"overlaps-{settings.ngram}-{settings.min_words}-{digest(settings)}.npz"


def decisive(settings: FilterSettings) -> dict[str, object]:
    """All of a filter that decides which documents stay: its thresholds, and the content of files it reads."""
    keys = settings.model_dump(mode="json")
    return {**keys, "files": digest(settings)} if isinstance(settings, Decontaminate) else keys


def with_absolute_files(filters: Sequence[FilterSettings]) -> list[FilterSettings]:
    """The filters with absolute paths, for workers that run in other folders."""
    return [
        settings.model_copy(update={"files": [str(Path(file).absolute()) for file in settings.files]})
        if isinstance(settings, Decontaminate)
        else settings
        for settings in filters
    ]
