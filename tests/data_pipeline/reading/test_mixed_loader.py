"""Batches of a mix: each sample is of one source, in the shares asked for, whatever ranks and restarts there are."""

import dataclasses
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from data_pipeline.config import DataConfig, MixConfig, ObjectiveConfig, ObjectivePart
from data_pipeline.manifest import Manifest
from data_pipeline.reading.batches import Reading
from data_pipeline.reading.corpus import Corpus, Mixing, Pace, Source
from data_pipeline.reading.loader import Loader, evaluation_batches
from data_pipeline.reading.mix_report import mix_facts
from data_pipeline.reading.packing import IGNORED

LENGTH, BATCH = 16, 12
RANGES = {"web": range(100, 400), "books": range(400, 500), "code": range(500, 560), "elsewhere": range(700, 900)}
"""Ids that the documents of each source are made of."""


def documents_of(source, count, seed):
    rng = np.random.default_rng(seed)
    bodies = [rng.choice(RANGES[source], length) for length in rng.integers(1, 40, count)]
    return [[1, *body, 2] for body in bodies]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_dataset):
    """A dataset of three sources, the shards of one of them apart from each other, and another dataset beside it."""
    shards = [("web", 120, 1), ("books", 40, 2), ("web", 60, 3), ("code", 50, 4)]
    held_out = [("web", 20, 5), ("code", 10, 6)]
    home = tmp_path_factory.mktemp("mixed")
    for name, (train, validation) in {"main": (shards, held_out), "other": ([("elsewhere", 90, 7)], [])}.items():
        (home / name).mkdir()
        splits, sources = {}, {}
        for split, rows in (("train", train), ("validation", validation)):
            splits[split], sources[split] = [documents_of(*row) for row in rows], [row[0] for row in rows]
        write_dataset(home / name, splits, sources=sources)
    return home


def corpus_of(folder, *sources, **mix):
    """The corpus of a mix of sources, each its keys; paths are folders beside the main dataset."""
    located = [{**source, **({"path": str(folder / source["path"])} if "path" in source else {})} for source in sources]
    config = MixConfig(sources=located, **mix) if sources else None
    data = DataConfig(path=str(folder / "main"), mix=config)
    return Corpus.read(data, "none", lambda path, _: Manifest.load(path))


def reading_of(corpus, **changes):
    options = {"objective": ObjectiveConfig(), "shape": "causal", "micro_batch_size": 1, "seed": 5, "pad_id": 3}
    return Reading(
        corpus.folder,
        corpus.manifest,
        sequence_length=LENGTH,
        sources=corpus.sources(corpus.mix),
        **{**options, **changes},
    )


def loader_of(corpus, history=(), consumed=0, **changes):
    mixing = corpus.mix and Mixing(corpus.mix, history, Pace(BATCH, LENGTH, consumed // BATCH, consumed))
    reading = reading_of(corpus, **changes)
    return Loader(reading, global_batch_size=BATCH, samples_consumed=consumed, prefetch=0, mixing=mixing)


def take(loader, count):
    """The micro-batches of so many global batches."""
    with loader:
        return [micro for batch in islice(loader, count) for micro in batch]


def source_of(batch):
    """Which source the one sample of a batch is from; fails where it is from several."""
    tokens = {token for token in batch.tokens.tolist() if token > 99}
    (name,) = (name for name, ids in RANGES.items() if tokens and tokens <= set(ids))
    return name


ALL = [{"name": "web", "weight": 6}, {"name": "books", "weight": 2}, {"name": "code", "weight": 1}]
ALL_AND_OTHER = [*ALL, {"name": "elsewhere", "weight": 3, "path": "other"}]


def test_every_sample_is_of_one_source_and_the_shares_are_those_asked_for(folder):
    batches = take(loader_of(corpus_of(folder, *ALL_AND_OTHER)), 50)
    assert Counter(map(source_of, batches)) == {"web": 300, "books": 100, "code": 50, "elsewhere": 150}


def test_a_global_batch_of_a_mix_is_the_same_for_any_ranks(folder):
    corpus = corpus_of(folder, *ALL_AND_OTHER)
    alone = [micro.tokens.tolist() for micro in take(loader_of(corpus), 7)]
    ranks = [take(loader_of(corpus, rank=rank, world_size=3), 7) for rank in range(3)]
    share = BATCH // 3
    shared = [micro.tokens.tolist() for step in range(7) for rank in ranks for micro in rank[step * share :][:share]]
    assert shared == alone


def test_a_mix_that_changes_on_the_way_repeats_no_sample_and_a_restart_gives_the_same(folder):
    first = loader_of(corpus_of(folder, *ALL))
    begun = take(first, 11)
    other = corpus_of(folder, *reversed(ALL_AND_OTHER))
    second = loader_of(other, first.mix.history, 11 * BATCH)
    history = second.mix.history
    went_on = take(second, 15)
    again = take(loader_of(other, history, 20 * BATCH), 6)
    assert [b.tokens.tolist() for b in again] == [b.tokens.tolist() for b in went_on[9 * BATCH :]]
    for name in RANGES:
        mine = [tuple(b.tokens.tolist()) for b in begun + went_on if source_of(b) == name]
        size = next(s.num_samples for s in history[-1].mix.sources if s.name == name)
        assert len(set(mine[:size])) == min(len(mine), size), name


def test_a_mix_of_all_of_the_dataset_goes_on_where_a_run_without_a_mix_stood(folder):
    plain = [micro.tokens.tolist() for micro in take(loader_of(corpus_of(folder)), 9)]
    whole = corpus_of(folder, {"name": "all", "path": "main"})
    assert [micro.tokens.tolist() for micro in take(loader_of(whole, (), 4 * BATCH), 5)] == plain[4 * BATCH :]
    both = corpus_of(folder, {"name": "all", "path": "main", "weight": 1}, {**ALL_AND_OTHER[3], "weight": 1})
    mixed = take(loader_of(both, (), 4 * BATCH), 6)
    kept = [micro.tokens.tolist() for micro in mixed if source_of_any(micro) != "elsewhere"]
    assert kept == plain[4 * BATCH : 7 * BATCH]


def source_of_any(batch):
    """`elsewhere` or not."""
    return "elsewhere" if any(token >= 700 for token in batch.tokens.tolist()) else "main"


def test_a_run_without_a_mix_cannot_go_on_by_sources(folder):
    with pytest.raises(ValueError, match="has drawn from the dataset of 'web' as a whole"):
        loader_of(corpus_of(folder, *ALL), (), BATCH)


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ([{"name": "news"}], "data.mix.sources\\[0\\].name: 'news' is no source of .*; it has web, books, code"),
        ([{"name": "web"}, {"name": "all", "path": "main"}], "'all' holds documents of 'web' too"),
        ([{"name": "a", "path": "other"}, {"name": "b", "path": "other"}], "'b' holds documents of 'a' too"),
        ([{"name": "web", "max_tokens": 3}], r"sources\[0\].max_tokens: less than one sample of 16 tokens"),
    ],
)
def test_a_mix_of_what_is_not_there_or_twice_is_refused(folder, sources, words):
    with pytest.raises(ValueError, match=words):
        loader_of(corpus_of(folder, *sources))


def test_datasets_of_other_tokenizers_are_refused(folder, tmp_path, write_dataset):
    write_dataset(tmp_path / "x", {"train": [documents_of("web", 5, 0)], "validation": []}, 60_000)
    with pytest.raises(ValueError, match=r"sources\[0\].path: .* vocab_size 60000 .*built with the same tokenizer"):
        corpus_of(folder, {"name": "x", "path": str(tmp_path / "x")})


def test_a_dataset_without_names_is_drawn_from_by_its_path_alone(folder, tmp_path, write_dataset):
    write_dataset(tmp_path / "main", {"train": [documents_of("web", 50, 0)], "validation": []})
    with pytest.raises(ValueError, match="before sources had names, so 'web' cannot be told apart"):
        corpus_of(tmp_path, {"name": "web"})
    assert len(take(loader_of(corpus_of(tmp_path, {"name": "old", "path": "main"})), 2)) == 2 * BATCH


def test_epochs_take_the_place_of_weights(folder):
    corpus = corpus_of(folder, {"name": "web"}, {"name": "code", "epochs": 3})
    loader = loader_of(corpus)
    (web, code) = loader.mix.history[0].mix.sources
    assert loader.mix.counts(web.num_samples + 3 * code.num_samples) == {
        "web": web.num_samples,
        "code": 3 * code.num_samples,
    }


def test_stages_begin_at_steps_and_tokens_and_come_in_order(folder):
    stages = [
        {"from_step": 3, "weights": {"code": 1}},
        {"from_tokens": 5 * BATCH * LENGTH - 1, "weights": {"books": 1}},
    ]
    names = [source_of(micro) for micro in take(loader_of(corpus_of(folder, *ALL, stages=stages)), 7)]
    assert set(names[: 3 * BATCH]) == {"web", "books", "code"}
    assert set(names[3 * BATCH : 5 * BATCH]) == {"code"} and set(names[5 * BATCH :]) == {"books"}
    with pytest.raises(ValueError, match=r"stages\[1\]: it begins after step 3, the stage ahead of it after step 5"):
        loader_of(corpus_of(folder, *ALL, stages=stages[::-1]))


def test_what_a_document_is_asked_may_depend_on_its_source(folder):
    parts = [
        ObjectivePart(name="next_token", sources=["web", "books"]),
        ObjectivePart(name="prefix_lm", sources=["code", "books"]),
    ]
    objective = ObjectiveConfig(name="mixture", parts=parts)
    batches = take(loader_of(corpus_of(folder, *ALL), objective=objective, shape="prefix"), 40)
    lengths = {"web": [], "books": [], "code": []}
    for micro in batches:
        documents = micro.num_documents
        lengths[source_of(micro)] += micro.prefix_lengths[:documents].tolist()
    assert not any(lengths["web"]) and all(lengths["code"]) and len({bool(n) for n in lengths["books"]}) == 2
    without = take(loader_of(corpus_of(folder), objective=objective, shape="prefix"), 20)
    for micro in without:  # no mix: documents of several sources in one sample
        for number, (start, length) in enumerate(
            zip(micro.cu_seqlens[: micro.num_documents].tolist(), micro.prefix_lengths.tolist(), strict=False)
        ):
            stop = int(micro.cu_seqlens[number + 1])
            tokens = [token for token in micro.tokens[start:stop].tolist() if token > 99]
            if tokens and tokens[0] in RANGES["web"]:
                assert not length
            if tokens and tokens[0] in RANGES["code"]:
                assert length


def test_batches_come_until_all_sources_are_at_their_limits_and_then_a_sentence(folder):
    limited = [{"name": "web", "max_samples": 7 * BATCH}, {"name": "code", "max_samples": 2 * BATCH + 5}]
    loader = loader_of(corpus_of(folder, *limited))
    with loader:
        assert len(list(islice(loader, 9))) == 9
        with pytest.raises(ValueError, match=f"every source has reached its limit after {9 * BATCH + 5} samples"):
            next(loader)


def test_a_source_that_no_part_is_for_is_refused(folder):
    objective = ObjectiveConfig(
        name="mixture", parts=[{"name": "next_token", "sources": ["web"]}, {"name": "prefix_lm", "sources": ["code"]}]
    )
    with pytest.raises(ValueError, match="none is for documents of the source 'books'"):
        loader_of(corpus_of(folder, *ALL), objective=objective, shape="causal")


def test_held_out_samples_are_those_of_the_mix_and_of_each_source(folder):
    corpus = corpus_of(folder, *ALL_AND_OTHER)
    reading = reading_of(corpus)
    assert set(map(source_of, evaluation_batches(reading))) == {"web", "code"}
    code = next(source for source in corpus.drawn if source.name == "code")
    alone = evaluation_batches(dataclasses.replace(reading, sources=(code,)))
    assert set(map(source_of, alone)) == {"code"}
    assert [source.name for source in corpus.drawn if source.has_held_out] == ["web", "code"]


def test_no_sample_is_lost_between_the_shards_of_a_source(folder):
    """All targets of an epoch of a source, whose shards lie apart, but for the tail that fills no sample."""
    corpus = corpus_of(folder, {"name": "web"})
    loader = loader_of(corpus)
    size = loader.mix.history[0].mix.sources[0].num_samples
    batches = take(loader, size // BATCH)
    table = Source("", corpus.drawn[0].folder, corpus.manifest, 0).shards("train")
    assert len(table) == 2 and (int(table.num_tokens.sum()) - 1) // LENGTH == size
    targets = sum(int((micro.labels != IGNORED).sum()) for micro in batches)
    assert len({tuple(micro.tokens.tolist()) for micro in batches}) == size // BATCH * BATCH
    assert targets > 0.8 * (size // BATCH) * BATCH * LENGTH


def test_what_a_mix_will_draw_is_told_beforehand_with_a_warning_of_what_is_repeated(folder):
    corpus = corpus_of(folder, *ALL, stages=[{"from_step": 10, "weights": {"code": 1}}], warn_epochs=2)
    facts, mix = mix_facts(reading_of(corpus), Mixing(corpus.mix, (), Pace(BATCH, LENGTH)), 30)
    by_name = {source.name: source for source in facts}
    assert mix.stages == [1, 11] and by_name["code"].shares == [1 / 9, 1.0]
    assert sum(source.drawn_samples for source in facts) == 30 * BATCH
    assert abs(by_name["code"].drawn_samples - (20 * BATCH + 10 * BATCH / 9)) < 3
    assert by_name["code"].num_tokens == int(corpus.drawn[2].shards("train").num_tokens.sum())
    (warning,) = mix.warnings
    assert warning.startswith(f"the run goes through 'code' {by_name['code'].epochs:.1f} times; what is repeated more")
    limited = corpus_of(folder, {"name": "web", "max_samples": 40})
    _, mix = mix_facts(reading_of(limited), Mixing(limited.mix, (), Pace(BATCH, LENGTH)), 30)
    assert mix.warnings == ["every source has reached its limit after step 3, and the run has 30"]
