"""`shardline data build --sample`: what the filters of a config would drop and change, before anything is built."""

import dataclasses
import json

from rich.table import Table

from common.mistakes import Mistake, cut
from data_pipeline.building.sample import Effect, SampleReport, sample_filters
from launcher.console import console, say
from training.config import RunConfig

SHOWN_EXAMPLES, SHOWN_CHARACTERS = 3, 100
"""Examples of a filter, and how much of each."""


def take(config: RunConfig, num_documents: int) -> SampleReport:
    """Runs the filters on a sample. Raises ValueError when there are no sources."""
    if not config.data.sources:
        raise Mistake("data.sources: is empty, so there is nothing to take a sample of; name some files")
    return sample_filters(config.data, num_documents)


def as_json(report: SampleReport) -> str:
    """All of a report, for scripts."""
    return json.dumps({**dataclasses.asdict(report), "kept": report.kept}, indent=2, ensure_ascii=False)


def show(report: SampleReport, config: RunConfig) -> None:
    """Prints what became of the documents, filter by filter, with some of those dropped and changed."""
    table = Table(box=None, header_style="dim")
    for column in ("filter", "documents", "dropped", "share", "of text", "changed", "characters"):
        table.add_column(column, justify="left" if column == "filter" else "right", no_wrap=True)
    for effect in report.effects:
        table.add_row(*_cells(effect))
    console.print(table)
    for effect in report.effects:
        if effect.reasons:
            most = sorted(effect.reasons.items(), key=lambda reason: -reason[1])
            say(f"{effect.name}: " + ", ".join(f"{reason} {count:,}" for reason, count in most))
        for example in effect.examples[:SHOWN_EXAMPLES]:
            say(f"  {example['reason']}  {example['where']}")
            say(f"      {cut(' '.join(example['text'].split()), SHOWN_CHARACTERS)}")
    sources = zip(config.data.sources, report.by_source, strict=True)
    say("; ".join(f"{count:,} documents of {source.path}" for source, count in sources))
    if report.rejects:
        say("no documents: " + ", ".join(f"{count:,} {reason}" for reason, count in report.rejects.items()))
    share = report.kept / max(report.documents, 1)
    say(f"{report.kept:,} of {report.documents:,} documents ({share:.1%}) are kept; nothing was written")


def _cells(effect: Effect) -> list[str]:
    return [
        effect.name,
        f"{effect.documents:,}",
        f"{effect.dropped:,}",
        f"{effect.dropped / max(effect.documents, 1):.1%}",
        f"{effect.characters_removed / max(effect.characters, 1):.1%}",
        f"{effect.changed:,}",
        f"{effect.characters_changed:,}",
    ]
