"""`shardline data inspect`: what is in a dataset, on the screen, with samples as the model will see them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from data_pipeline.opening import open_dataset
from data_pipeline.reading.inspect import DatasetFacts, SampleView
from data_pipeline.reading.mix_report import MixFacts, SourceFacts
from launcher.config import load_config
from launcher.console import console, number, say
from training.config import RunConfig

SHOWN_CHARACTERS = 400


def look(
    folder: Path, tokenizer: Path | None, config: Path | None, split: str, num_samples: int, sequence_length: int
) -> DatasetFacts:
    """Facts and samples of a dataset, for causal next-token prediction or for the run that `config` describes.

    With that run's own dataset also what its mix draws from where.
    """
    from data_pipeline.reading.inspect import inspect_dataset
    from data_pipeline.tokenizer import Tokenizer

    run = load_config(config) if config else None
    found = tokenizer or (run.tokenizer if run else None)
    loaded = Tokenizer.load(found, fast_encoder="off") if found else None
    how: dict[str, Any] = {"sequence_length": sequence_length}
    if run:
        lengths = {"sequence_length": run.training.sequence_length, "target_length": run.training.target_length}
        how = {"objective": run.objective, "shape": run.model.shape, "seed": run.seed, **lengths}
        how["packing"] = run.data.packing
    facts = inspect_dataset(folder, loaded, split=split, num_samples=num_samples, **how)
    if run is None or run.data.mix is None or Path(folder).absolute() != Path(run.data.path).absolute():
        return facts
    sources, mix = mix_of(run)
    return dataclasses.replace(facts, sources=sources, mix=mix)


def mix_of(run: RunConfig) -> tuple[list[SourceFacts], MixFacts]:
    """What a run draws from each source of its mix, and what to think about."""
    from data_pipeline.reading.batches import Reading
    from data_pipeline.reading.corpus import Corpus, Mixing, Pace
    from data_pipeline.reading.mix_report import mix_facts

    corpus, training = Corpus.read(run.data, run.tokenizer, open_dataset), run.training
    assert corpus.mix is not None
    reading = Reading(
        corpus.folder,
        corpus.manifest,
        run.objective,
        run.model.shape,
        training.sequence_length,
        1,
        run.seed,
        target_length=training.target_length,
        sources=corpus.sources(corpus.mix),
        packing=run.data.packing,
    )
    pace = Pace(training.global_batch_size, training.sequence_length)
    return mix_facts(reading, Mixing(corpus.mix, (), pace), training.steps)


def as_json(facts: DatasetFacts) -> str:
    """All facts for scripts."""
    return json.dumps(dataclasses.asdict(facts), indent=2)


def show(facts: DatasetFacts) -> None:
    """Prints the counts of every split, then the samples with a rule at each document's border."""
    console.print(f"[bold]{escape(facts.path)}[/]  {facts.vocab_size:,} pieces as {facts.dtype}", soft_wrap=True)
    table = Table(box=None, header_style="dim")
    table.add_column("")
    for split in facts.splits:
        table.add_column(escape(split.name), justify="right")
    for name, cells in _rows(facts):
        table.add_row(name, *cells)
    console.print(table)
    if facts.mix is not None or len(facts.sources) > 1:
        _show_sources(facts)
    for name, count in facts.counts.items():
        say(f"  {name.replace('_', ' ')}: {count:,}")
    for sample in facts.samples:
        _show_sample(sample, facts)


def _rows(facts: DatasetFacts) -> list[tuple[str, list[str]]]:
    splits, about = facts.splits, "" if facts.packing == "windows" else "about "
    return [
        ("packing", [facts.packing.replace("_", " ")] * len(splits)),
        ("shards", [f"{split.num_shards:,}" for split in splits]),
        ("documents", [f"{split.num_documents:,}" for split in splits]),
        ("tokens", [f"{split.num_tokens:,}" for split in splits]),
        ("bytes of text per token", [f"{split.bytes_per_token:.2f}" for split in splits]),
        ("tokens per document", [number(split.mean_document_length) for split in splits]),
        (f"samples of {about}{facts.window} tokens", [f"{split.num_samples:,}" for split in splits]),
        ("documents per sample", [f"{split.documents_per_sample:.1f}" for split in splits]),
        ("documents cut", [f"{split.cut_share:.1%}" for split in splits]),
        ("padding", [f"{split.padding_share:.3%}" for split in splits]),
        ("targets, of all positions", [f"{split.target_share:.1%}" for split in splits]),
        ("left out for want of room", [f"{split.left_out_share:.3%}" for split in splits]),
    ]


def _show_sources(facts: DatasetFacts) -> None:
    """A table of the sources; with a mix, what the run draws from each."""
    stages = facts.mix.stages if facts.mix else []
    table = Table(box=None, header_style="dim")
    table.add_column("source")
    names = ["documents", "tokens", "of all", "held out"]
    names += [f"asked from step {first}" if first > 1 else "asked" for first in stages]
    for name in [*names, *(["samples drawn", "epochs"] if facts.mix else [])]:
        table.add_column(name, justify="right")
    total = sum(source.num_tokens for source in facts.sources)
    for source in facts.sources:
        cells = [f"{source.num_documents:,}", f"{source.num_tokens:,}", f"{source.num_tokens / max(total, 1):.1%}"]
        cells += [f"{source.held_out_tokens:,}", *(f"{share:.2%}" for share in source.shares)]
        cells += [f"{source.drawn_samples:,}", f"{source.epochs:.2f}"] if facts.mix else []
        table.add_row(escape(source.name), *cells)
    console.print(table)
    for words in facts.mix.warnings if facts.mix else ():
        say(f"  warning: {words}")


def _show_sample(sample: SampleView, facts: DatasetFacts) -> None:
    lost = f", {sample.num_left_out} tokens left out for want of room" if sample.num_left_out else ""
    if facts.target_length:
        rows = f"{facts.sequence_length} positions of the encoder ({sample.num_encoder_padding} of padding) and "
        rows += f"{facts.target_length} of the decoder ({sample.num_padding} of padding)"
    else:
        rows = f"{facts.sequence_length} positions ({sample.num_padding} of padding)"
    console.print(
        f"\n[bold]sample {sample.index}[/]: {rows}, "
        f"{len(sample.documents)} documents, {sample.num_cut} of them cut{lost}",
        soft_wrap=True,
    )
    for index, document in enumerate(sample.documents):
        console.rule(
            f"document {index}: {document.num_tokens} tokens, prefix {document.prefix_length}, "
            f"{document.num_targets} targets",
            align="left",
        )
        if document.encoder is not None:
            console.print("[dim]encoder reads[/]", _excerpt(document.encoder))
            console.print("[dim]decoder reads and predicts[/]", _excerpt(document.text))
            continue
        console.print(_excerpt(document.text))
        if document.num_targets < document.num_tokens:
            console.print("[dim]predicts[/]", _excerpt(document.targets))


def _excerpt(text: str) -> Text:
    if len(text) > 2 * SHOWN_CHARACTERS:
        hidden = len(text) - 2 * SHOWN_CHARACTERS
        text = f"{text[:SHOWN_CHARACTERS]}\n... {hidden:,} characters ...\n{text[-SHOWN_CHARACTERS:]}"
    # Control characters of a document must not move the cursor of whoever looks at it.
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))
