"""What a mix draws from its sources over a run, before it is begun: shares, samples, epochs, what is repeated often."""

import dataclasses
from collections.abc import Sequence

from data_pipeline.reading.batches import BatchMaker, Reading
from data_pipeline.reading.corpus import Mixing, Source
from data_pipeline.reading.loader import mixed_order


@dataclasses.dataclass(frozen=True)
class SourceFacts:
    """One source of a dataset or a mix."""

    name: str
    num_documents: int
    """Documents that are trained on."""
    num_tokens: int
    """Their tokens."""
    held_out_tokens: int
    """Tokens of those that are held out."""
    shares: list[float]
    """Share of the samples asked for, by stage; none without a mix."""
    num_samples: int
    """Samples of one epoch; 0 without a mix."""
    drawn_samples: int
    """Samples that the run draws."""
    epochs: float
    """How often it goes through the source."""


@dataclasses.dataclass(frozen=True)
class MixFacts:
    """What a run draws."""

    steps: int
    """Steps of the run."""
    stages: list[int]
    """First step of each stage, counted from 1."""
    warnings: list[str]
    """What somebody should think about, a sentence each."""


def source_facts(sources: Sequence[Source]) -> list[SourceFacts]:
    """What there is of each source."""
    return [
        SourceFacts(
            name=source.name,
            num_documents=int(source.shards("train").num_documents.sum()),
            num_tokens=int(source.shards("train").num_tokens.sum()),
            held_out_tokens=int(source.shards("validation").num_tokens.sum()),
            shares=[],
            num_samples=0,
            drawn_samples=0,
            epochs=0.0,
        )
        for source in sources
    ]


def mix_facts(reading: Reading, mixing: Mixing, steps: int) -> tuple[list[SourceFacts], MixFacts]:
    """What a run of so many steps draws from each source of its mix."""
    order = mixed_order(mixing, reading, BatchMaker(reading, "train"))
    mix, size = order.history[-1].mix, mixing.pace.global_batch_size
    drawn = order.counts(min(steps * size, order.end))
    facts = [
        dataclasses.replace(
            there,
            shares=[stage.weights[number] / sum(stage.weights) for stage in mix.stages],
            num_samples=source.num_samples,
            drawn_samples=drawn[source.name],
            epochs=drawn[source.name] / max(source.num_samples, 1),
        )
        for number, (there, source) in enumerate(zip(source_facts(reading.sources), mix.sources, strict=True))
    ]
    warnings = [
        f"the run goes through '{source.name}' {source.epochs:.1f} times; what is repeated more than "
        f"{mixing.config.warn_epochs:g} times is worth little (arXiv 2305.16264): lower its weight, or set max_epochs"
        for source in facts
        if source.epochs > mixing.config.warn_epochs
    ]
    if order.end < steps * size:
        warnings.append(f"every source has reached its limit after step {order.end // size}, and the run has {steps}")
    return facts, MixFacts(steps, [stage.first // size + 1 for stage in mix.stages], warnings)
