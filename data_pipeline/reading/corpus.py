"""What a run draws from: sources of one dataset or of several, each with its shards, and what a config asks of them.

    data.path, data.mix.sources[].path -> Corpus of manifests -> sources_of -> Source ...
    Source ... + how many samples each has + data.mix -> asked_of -> Mix (mix.py) -> order_of -> MixedOrder

A Source is a row of shards that samples are cut from, end to end; no sample crosses into another source.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.mistakes import Mistake, shown
from data_pipeline.config import DataConfig, MixConfig, MixSourceConfig, TokenizerConfig
from data_pipeline.manifest import FILE_NAME, Manifest
from data_pipeline.reading.mix import Drawn, History, Mix, MixedOrder, MixedSource, Since, Stage, gone_on_with
from data_pipeline.reading.order import hash64
from data_pipeline.shard_table import ShardTable

SAME = ("tokenizer_fingerprint", "vocab_size", "dtype", "bos_id", "eos_id", "special_ids", "first_sentinel_id")
SAME_TOO = ("num_sentinels", "word_starts", "word_ends")
"""What datasets of one mix have in common: the ids and what they mean."""
_SOURCE = 3
"""Keeps the orders of sources apart from other numbers that are drawn from the same seed."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset, or one of the sources it was built from."""

    name: str
    """What the run calls it; empty where there is no mix."""
    folder: Path
    """Folder of the dataset."""
    manifest: Manifest
    """What is in it."""
    number: int | None = None
    """Which of its sources; None is all of it."""

    def shards(self, split: str) -> ShardTable:
        """Its shards in a split, in their order; none where the dataset has no such split."""
        table = self.manifest.splits.get(split)
        if table is None:
            return ShardTable.of([])
        return table if self.number is None else table.of_source(self.number)

    @property
    def has_held_out(self) -> bool:
        """Whether some of its documents are held out."""
        return bool(self.shards("validation").num_tokens.sum())

    def seed(self, seed: int) -> int:
        """What decides the order of its epochs in a run with this seed."""
        return hash64(seed, _SOURCE, int(self.content[:16], 16))

    @functools.cached_property
    def content(self) -> str:
        """Hash of the tokens that are trained on, xxh3_128 hex."""
        return self.shards("train").digest

    @property
    def dataset(self) -> str:
        """The same of its whole dataset."""
        return self.manifest.splits["train"].digest


def names_of(sources: Sequence[Source]) -> list[str]:
    """What the sources are called; of a dataset as a whole, what those are called that it was built from."""
    (first, *others) = sources
    return [source.name for source in sources] if others or first.name else [of.name for of in first.manifest.sources]


def apart(sources: Sequence[Source]) -> list[Source]:
    """The sources by themselves; of a dataset as a whole, those that it was built from."""
    (first, *others) = sources
    if others or first.name:
        return list(sources)
    named = enumerate(first.manifest.sources)
    return [dataclasses.replace(first, name=source.name, number=number) for number, source in named]


def numbers_of(sources: Sequence[Source], split: str) -> np.ndarray:
    """Number, among `names_of`, of the source of each shard of a split: int64."""
    (first, *others) = sources
    if not others and not first.name:
        return first.shards(split).sources.astype(np.int64)
    return np.repeat(np.arange(len(sources)), [len(source.shards(split)) for source in sources])


def whole(folder: str | Path, name: str = "all") -> MixConfig:
    """The mix that draws from the whole of one dataset: what a run without a mix does."""
    return MixConfig(sources=[MixSourceConfig(name=name, path=str(folder))])


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The dataset of a run, and the others that it draws from."""

    folder: str
    """Where the dataset lies."""
    manifest: Manifest
    """What is in it."""
    mix: MixConfig | None
    """What the config asks for."""
    others: Mapping[str, Manifest]
    """Manifests of the other datasets, by path."""
    grown: Manifest | None = None
    """What is in the dataset now, where sources were added since the run began."""

    @classmethod
    def read(
        cls, data: DataConfig, tokenizer: TokenizerConfig, reader: Callable[[str, TokenizerConfig], Manifest]
    ) -> "Corpus":
        """Each dataset by `reader`, which is told its folder and the tokenizer.

        Raises ValueError when one is not there, or when a source of the mix is in none of them.
        """
        paths = [source.path for source in data.mix.sources if source.path is not None] if data.mix else []
        manifest = reader(data.path, tokenizer)
        others = {path: reader(path, tokenizer) for path in dict.fromkeys(paths) if not _same(path, data.path)}
        corpus = cls(data.path, manifest, data.mix, others)
        corpus.sources(data.mix)
        return corpus

    def sources(self, mix: MixConfig | None) -> tuple[Source, ...]:
        """The sources of a mix; none without one, where the dataset is drawn from as a whole."""
        return sources_of(mix, self.folder, self.grown or self.manifest, self.others) if mix else ()

    @property
    def drawn(self) -> tuple[Source, ...]:
        """What the config has samples cut from."""
        return self.sources(self.mix) or (Source("", Path(self.folder), self.manifest),)

    @property
    def has_held_out(self) -> bool:
        """Whether there is something to evaluate on."""
        return any(source.has_held_out for source in self.drawn)


def sources_of(
    mix: MixConfig, folder: str | Path, manifest: Manifest, others: Mapping[str, Manifest]
) -> tuple[Source, ...]:
    """The sources of a mix in its order; `others` are the manifests by path.

    Raises ValueError when a source is not there, is there twice, or has ids of another tokenizer.
    """
    found: list[Source] = []
    for number, wanted in enumerate(mix.sources):
        key = f"data.mix.sources[{number}]"
        if wanted.path is None:
            place = _number_of(f"{key}.name", wanted.name, folder, manifest)
            source = Source(wanted.name, Path(folder), manifest, place)
        elif _same(wanted.path, folder):
            source = Source(wanted.name, Path(folder), manifest)
        else:
            source = Source(wanted.name, Path(wanted.path), others[wanted.path])
            _check_same(f"{key}.path", source, folder, manifest)
        _check_apart(key, source, found)
        found.append(source)
    return tuple(found)


def _same(path: str | Path, other: str | Path) -> bool:
    return Path(path).absolute() == Path(other).absolute()


def _number_of(key: str, name: str, folder: str | Path, manifest: Manifest) -> int:
    names = [source.name for source in manifest.sources]
    if name in names:
        return names.index(name)
    if not names:
        raise Mistake(
            f"{key}: {folder} was built before sources had names, so '{name}' cannot be told apart; name its folder as "
            "path to draw from all of it, or build it anew"
        )
    raise Mistake(
        f"{key}: '{name}' is no source of {folder}; it has {', '.join(names)} (or give the path of a dataset)"
    )


def _check_same(key: str, source: Source, folder: str | Path, manifest: Manifest) -> None:
    for name in (*SAME, *SAME_TOO):
        ours, theirs = getattr(manifest, name), getattr(source.manifest, name)
        if ours != theirs:
            raise Mistake(
                f"{key}: {source.folder / FILE_NAME} has {name} {shown(theirs)} and that of {folder} {shown(ours)}; "
                "datasets of one mix are built with the same tokenizer"
            )


def _check_apart(key: str, source: Source, before: Sequence[Source]) -> None:
    """ValueError when a source has shards that another one has too."""
    for other in before:
        whole_of_same = source.dataset == other.dataset and None in (source.number, other.number)
        if whole_of_same or source.content == other.content:
            raise Mistake(
                f"{key}: '{source.name}' holds documents of '{other.name}' too, which would be drawn twice; "
                "take one of them out of the mix"
            )


def drew_whole(history: History, manifest: Manifest) -> bool:
    """Whether a run with this history drew from a dataset of several sources as a whole."""
    content = Source("", Path(), manifest).content
    return len(manifest.sources) != 1 and any(
        source.content == content for since in history for source in since.mix.sources
    )


# ---- what a config asks of them


@dataclasses.dataclass(frozen=True)
class Pace:
    """How steps, samples and tokens of a run go together where it stands."""

    global_batch_size: int
    """Samples of a step."""
    sequence_length: int
    """Tokens that a sample is counted as."""
    step: int = 0
    """Steps done."""
    samples_consumed: int = 0
    """Samples drawn by then; more than steps alone would have, where some were left out."""

    def counter_at(self, step: int) -> int:
        """Counter of the first sample after so many steps."""
        return max(self.samples_consumed + (step - self.step) * self.global_batch_size, 0)

    def steps_for(self, tokens: int) -> int:
        """Steps that so many tokens take."""
        return -(-tokens // (self.global_batch_size * self.sequence_length))


def asked_of(config: MixConfig, sources: Sequence[Source], num_samples: Sequence[int], window: int, pace: Pace) -> Mix:
    """What a config asks for, in samples of `window` tokens, of which each source has so many.

    Raises ValueError when a source that is drawn from has none, or a limit is less than one.
    """
    mixed: list[MixedSource] = []
    for number, (wanted, source, count) in enumerate(zip(config.sources, sources, num_samples, strict=True)):
        key = f"data.mix.sources[{number}]"
        drawn = wanted.weight != 0 or any(stage.weights.get(wanted.name) for stage in config.stages)
        if drawn and not count:
            raise Mistake(
                f"{key}: '{wanted.name}' has not one sample of {window} tokens; give it more text, or weight 0"
            )
        mixed.append(
            MixedSource(wanted.name, source.content, source.dataset, count, _limit(key, wanted, count, window))
        )
    return Mix(tuple(mixed), _stages(config, num_samples, pace))


def _stages(config: MixConfig, num_samples: Sequence[int], pace: Pace) -> tuple[Stage, ...]:
    stages, last = [Stage(0, _own_weights(config, num_samples))], 0
    for number, stage in enumerate(config.stages):
        step = stage.from_step if stage.from_step is not None else pace.steps_for(stage.from_tokens or 0)
        if step <= last:
            raise Mistake(
                f"data.mix.stages[{number}]: it begins after step {step}, the stage ahead of it after step {last}; "
                "put them in order"
            )
        first, last = pace.counter_at(step), step
        if first == stages[-1].first:
            stages.pop()  # over before the run began to count, for a step was larger then
        stages.append(Stage(first, tuple(stage.weights.get(source.name, 0.0) for source in config.sources)))
    return tuple(stages)


def _own_weights(config: MixConfig, num_samples: Sequence[int]) -> tuple[float, ...]:
    """Weights of the sources themselves; where they are told in epochs, the samples of so many."""
    pairs = zip(config.sources, num_samples, strict=True)
    return tuple(
        float((source.epochs or 1) * count) if source.weight is None else source.weight for source, count in pairs
    )


def _limit(key: str, source: MixSourceConfig, num_samples: int, window: int) -> int | None:
    limits = {
        "max_samples": source.max_samples,
        "max_epochs": None if source.max_epochs is None else math.floor(source.max_epochs * num_samples),
        "max_tokens": None if source.max_tokens is None else source.max_tokens // window,
    }
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if too_low := next((name for name, limit in given.items() if not limit and num_samples), None):
        raise Mistake(f"{key}.{too_low}: less than one sample of {window} tokens; raise it, or set weight 0")
    return min(given.values(), default=None)


# ---- the order of a run


@dataclasses.dataclass(frozen=True)
class Mixing:
    """What a run mixes from where it stands on."""

    config: MixConfig
    """What is asked for now."""
    history: History
    """What it was before; empty where a run begins, or had no mix so far."""
    pace: Pace
    """Where the run stands."""


def order_of(
    mixing: Mixing,
    sources: Sequence[Source],
    main: Source,
    samples: Sequence[int],
    samples_of_main: int,
    window: int,
    seed: int,
) -> MixedOrder:
    """The order in which a run goes on, whose sources have so many samples; `main` is the whole of `data.path`.

    A run that had no mix so far has drawn from the whole of `main`, in the order that a mix draws from it, too.
    Raises ValueError when a source has nothing to draw, or when the mix is not one that the run can go on with.
    """
    asked = asked_of(mixing.config, sources, samples, window, mixing.pace)
    history, counter = mixing.history, mixing.pace.samples_consumed
    if counter and not history:
        everything = MixedSource("all", main.content, main.dataset, samples_of_main)
        history = (Since(0, Mix((everything,), (Stage(0, (1.0,)),))),)
    firsts = itertools.accumulate(samples, initial=0)
    drawn = [
        Drawn(source.content, first, count, seed if source.content == main.content else source.seed(seed))
        for source, first, count in zip(sources, firsts, samples, strict=False)
    ]
    return MixedOrder(gone_on_with(history, asked, counter), drawn, seed)
