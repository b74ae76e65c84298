"""What filters would do to a corpus, from a sample of its documents: nothing is written, and Ray is not needed.

    sources -> some units of each -> some documents of each unit -> filters, one after the other -> SampleReport

The same documents for the same files and number.
"""

import dataclasses
import random
from collections.abc import Sequence

import xxhash

from data_pipeline.building.clean import normalized
from data_pipeline.building.records import MAX_EXAMPLES, SAMPLE_CHARACTERS, Rejects, Unit
from data_pipeline.building.source_files import list_files
from data_pipeline.building.sources import plan_units, read_documents, refuse_tokens
from data_pipeline.config import DataConfig
from data_pipeline.filters.chain import Step, make_steps
from data_pipeline.filters.document import Document, Dropped

UNIT_BYTES = 2_000_000
"""Size of the parts of files that documents are drawn from."""
UNITS_IN_ALL = 64
"""Parts that are read, of all sources together; each source has one at least."""

BEFORE_CHANGE = 40
"""How much of what stayed is shown in front of the first change of a text."""


@dataclasses.dataclass
class Effect:
    """What one filter did to the documents that came to it."""

    name: str
    documents: int = 0
    """Those that came to it."""
    dropped: int = 0
    changed: int = 0
    """Those that went on with another text."""
    characters: int = 0
    """Of the documents that came to it."""
    characters_removed: int = 0
    """Of those, in documents that were dropped."""
    characters_changed: int = 0
    """By how much the lengths of the changed ones differ, all together."""
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    """Dropped documents by rule, and how often something was replaced."""
    examples: list[dict[str, str]] = dataclasses.field(default_factory=list)
    """Of dropped and changed documents: why, where they lie, how they begin."""


@dataclasses.dataclass(frozen=True)
class SampleReport:
    """What became of the documents of a sample."""

    documents: int
    """Documents read."""
    by_source: list[int]
    """Those of each source."""
    rejects: dict[str, int]
    """Records that were no documents, by reason."""
    effects: list[Effect]
    """Of the rules on lengths, if they dropped something, and of each filter, in their order."""

    @property
    def kept(self) -> int:
        """Documents that would be tokenized, if they are no copies."""
        return self.documents - sum(effect.dropped for effect in self.effects)


@dataclasses.dataclass(frozen=True)
class _Drawn:
    text: str
    where: str


def sample_filters(config: DataConfig, num_documents: int) -> SampleReport:
    """Runs the filters of a config on some of its documents.

    Raises ValueError when a source matches nothing or cannot be read, or a filter lacks what it needs.
    """
    steps = make_steps(config.filters)
    rejects = Rejects()
    drawn = draw_documents(config, num_documents, rejects)
    lengths = Effect("lengths")
    documents = []
    for each in (each for source in drawn for each in source):
        document = normalized(each.text, config)
        _note(lengths, each, Document(each.text), document)
        if isinstance(document, Document):
            documents.append((each, document))
    effects = [lengths] if lengths.dropped else []
    for step in steps:
        effect, documents = _run_step(step, documents)
        effects.append(effect)
    return SampleReport(sum(map(len, drawn)), [len(source) for source in drawn], rejects.by_reason(), effects)


def _run_step(step: Step, documents: list[tuple[_Drawn, Document]]) -> tuple[Effect, list[tuple[_Drawn, Document]]]:
    effect = Effect(step.name)
    going_on = []
    for each, document in documents:
        result = step.apply(document)
        _note(effect, each, document, result)
        if isinstance(result, Document):
            going_on.append((each, result))
    return effect, going_on


def _note(effect: Effect, drawn: _Drawn, before: Document, after: Document | Dropped) -> None:
    effect.documents += 1
    effect.characters += len(before.text)
    if isinstance(after, Dropped):
        reason, shown = after.reason, before.text
        effect.dropped += 1
        effect.characters_removed += len(before.text)
        counts = {reason: 1}
    elif after.text != before.text:
        reason, shown = "changed", _around_change(before.text, after.text)
        effect.changed += 1
        effect.characters_changed += abs(len(before.text) - len(after.text))
        counts = {what: count - before.changes.get(what, 0) for what, count in after.changes.items()}
    else:
        return
    for what, count in counts.items():
        if count:
            effect.reasons[what] = effect.reasons.get(what, 0) + count
    if sum(example["reason"] == reason for example in effect.examples) < MAX_EXAMPLES:
        beginning = shown[:SAMPLE_CHARACTERS].encode(errors="replace").decode()
        effect.examples.append({"reason": reason, "where": drawn.where, "text": beginning})


def _around_change(before: str, after: str) -> str:
    """The new text from shortly before where it first is another."""
    pairs = enumerate(zip(before, after, strict=False))
    first = next((place for place, (old, new) in pairs if old != new), min(len(before), len(after)))
    return after[max(first - BEFORE_CHANGE, 0) :]


# ---- the sample


def draw_documents(config: DataConfig, num_documents: int, rejects: Rejects) -> list[list[_Drawn]]:
    """About as many documents of each source; where one has fewer, larger ones make up for it."""
    files = list_files(config.sources)
    refuse_tokens(files)
    units: list[list[Unit]] = [[] for _ in config.sources]
    for unit in plan_units(files, config.sources, UNIT_BYTES):
        units[unit.source].append(unit)
    drawn: list[list[_Drawn]] = [[] for _ in units]
    left = num_documents
    small_first = sorted(range(len(units)), key=lambda source: sum(unit.weight for unit in units[source]))
    for turn, source in enumerate(small_first):
        chosen = sorted(units[source], key=_shuffle_key)[: max(UNITS_IN_ALL // len(units), 1)]
        drawn[source] = _draw(chosen, config, -(-left // (len(units) - turn)), rejects)
        left -= len(drawn[source])
    return drawn


def _shuffle_key(unit: Unit) -> int:
    name = f"{unit.source} {unit.url.rpartition('/')[2]} {unit.start}"
    return xxhash.xxh3_64_intdigest(name.encode())


def _draw(units: Sequence[Unit], config: DataConfig, wanted: int, rejects: Rejects) -> list[_Drawn]:
    """Documents drawn alike from what the units hold, by a reservoir (Vitter's algorithm R)."""
    draws = random.Random(0)
    reservoir: list[_Drawn] = []
    seen = 0
    for unit in units:
        size = 0
        for record, text in read_documents(unit, config.sources[unit.source], rejects):
            seen += 1
            place = len(reservoir) if len(reservoir) < wanted else draws.randrange(seen)
            if place < wanted:
                reservoir[place : place + 1] = [_Drawn(text, rejects.place(record))]
            size += len(text)
            if size > UNIT_BYTES:
                break  # a compressed file is one unit, however large
    return reservoir
