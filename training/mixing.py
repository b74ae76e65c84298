"""What the mix of a config means for a run: datasets it reads, where in it the run stands, how often each source came.

data.path, data.mix -> read -> RunData -> sources
RunData, state -> mixing_of -> Loader -> its history -> state of the next checkpoint
"""

import dataclasses
from collections.abc import Callable

from common.mistakes import Mistake
from data_pipeline.config import TokenizerConfig
from data_pipeline.manifest import Manifest
from data_pipeline.opening import read_dataset
from data_pipeline.reading.corpus import Corpus, Mixing, Pace, names_of, whole
from data_pipeline.reading.mix import History, MixedOrder
from data_pipeline.reading.objectives import check_sources
from training.config import RunConfig
from training.state.identity import RunState


def read(config: RunConfig, reader: Callable[[str, TokenizerConfig], Manifest] = read_dataset) -> Corpus:
    """The datasets of a run. ValueError when one is not there, or lacks sources that the config names."""
    corpus = Corpus.read(config.data, config.tokenizer, reader)
    for objective in (config.objective, *config.evaluation.objectives):
        check_sources(objective, names_of(corpus.drawn))
    return corpus


def mixing_of(config: RunConfig, state: RunState) -> Mixing | None:
    """The mix of a run that stands at `state`; None where it has and had none."""
    if config.data.mix is None and not state.mix:
        return None
    training = config.training
    pace = Pace(training.global_batch_size, training.sequence_length, state.step, state.samples_consumed)
    return Mixing(config.data.mix or whole(config.data.path), state.mix, pace)


def check_lasts(config: RunConfig, state: RunState, order: MixedOrder) -> None:
    """ValueError when all sources reach their limits before the last step."""
    steps = (order.end - state.samples_consumed) // config.training.global_batch_size
    if state.step + steps < config.training.steps:
        raise Mistake(
            f"data.mix: every source has reached its limit after step {state.step + steps}, and the run has "
            f"{config.training.steps} (training.steps); raise a limit, or end there"
        )


def change_in_words(before: History, after: History) -> str:
    """What a run that resumes is told of its mix; empty where it goes on with the same."""
    if before == after or len(after) == 1:
        return ""
    mix = after[-1].mix
    stage = next(stage for stage in reversed(mix.stages) if stage.first <= after[-1].first)
    total = sum(stage.weights)
    shares = ", ".join(
        f"{source.name} {weight / total:.2%}" for source, weight in zip(mix.sources, stage.weights, strict=True)
    )
    return f"from sample {after[-1].first} on the mix is another one: {shares}; no sample comes twice or is left out"


@dataclasses.dataclass(frozen=True)
class SourceCounts:
    """How much of each source a run has drawn; computed from the counter, nothing is counted."""

    order: MixedOrder
    """Which sample is drawn when."""
    window: int
    """Raw tokens of a sample."""

    def figures(self, samples_consumed: int) -> dict[str, dict[str, float]]:
        """By source: samples and tokens drawn, and epochs, which are rounded to a millionth."""
        counts = self.order.counts(samples_consumed)
        sizes = {source.name: source.num_samples for source in self.order.history[-1].mix.sources}
        return {
            name: {"samples": count, "tokens": count * self.window, "epochs": round(count / max(sizes[name], 1), 6)}
            for name, count in counts.items()
        }
