"""Every target comes exactly once, documents stay whole where they fit, rows do not depend on who asks when."""

import itertools
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import ObjectiveConfig
from data_pipeline.manifest import Manifest
from data_pipeline.reading import whole_documents as module
from data_pipeline.reading.batches import BatchMaker, Reading
from data_pipeline.reading.budget import DrawnCosts
from data_pipeline.reading.filling import Plan
from data_pipeline.reading.objectives import NextToken
from data_pipeline.reading.whole_documents import WholeDocuments
from tests.data_pipeline import samples
from tests.data_pipeline.opened import loader

SHARDS = st.lists(st.lists(st.integers(1, 20), max_size=12), min_size=1, max_size=4)
EVERY_PAIR = [
    ("causal", "next_token"),
    ("prefix", "prefix_lm"),
    ("causal", "ul2"),
    ("encoder", "sentence_pairs"),
    ("encdec", "span_corruption"),
    ("encdec", "prefix_lm"),
]


@pytest.fixture(scope="module")
def build(tmp_path_factory, write_dataset, numbered_documents):
    """Function (lengths of documents by shard, row, rows of a block) -> dataset of next-token rows, documents."""

    def make(shards, row, num_rows=4):
        documents = numbered_documents([n for shard in shards for n in shard])
        ends = np.cumsum([0, *map(len, shards)])
        split = [documents[a:b] for a, b in pairwise(ends)]
        folder = write_dataset(tmp_path_factory.mktemp("dataset"), {"train": split})
        plan = Plan((num_rows - 1) * row, num_rows, (row,), row + 1, 0, 1)
        costs = DrawnCosts(NextToken(), "causal", 0)
        return WholeDocuments(folder, Manifest.load(folder), "train", plan, costs), documents

    return make


@settings(max_examples=40)
@given(SHARDS, st.integers(1, 15))
def test_every_target_is_in_exactly_one_row_and_no_row_overflows(build, shards, row):
    dataset, documents = build(shards, row)
    found = dataset.read(dataset.locate(np.arange(len(dataset))))
    assert dataset.num_unused_tokens == 0
    pieces = [piece.tolist() for piece in found.split()]
    targets = [pair for piece in pieces for pair in pairwise(piece)]
    expected = [pair for doc in documents for pair in pairwise(doc.tolist())]
    assert sorted(targets) == sorted(expected)
    used = np.zeros(len(dataset), int)
    np.add.at(used, np.repeat(np.arange(len(dataset)), found.num_pieces), found.lengths - 1)
    assert used.max(initial=0) <= row
    whole = [tuple(doc.tolist()) for doc in documents]
    assert found.is_cut.tolist() == [tuple(piece) not in whole for piece in pieces]


@settings(max_examples=8)
@given(st.lists(SHARDS, min_size=2, max_size=3), st.integers(1, 15))
def test_each_source_of_a_mix_has_the_rows_that_it_has_by_itself(build, sources, row):
    alone = [build(shards, row)[0] for shards in sources]
    first, rows = alone[0], [(each.folder, each.manifest.splits["train"]) for each in alone]
    mixed = WholeDocuments(first.folder, first.manifest, "train", first._plan, first._costs, rows=rows)
    assert mixed.samples_of_rows.tolist() == list(map(len, alone))
    expected = [list(map(list, each.sample(index))) for each in alone for index in range(len(each))]
    assert [list(map(list, mixed.sample(index))) for index in range(len(mixed))] == expected
    every = np.arange(len(mixed))[::-1]
    located = [mixed.locate(every, every * 0), *(each.locate(np.arange(len(each))) for each in alone)]
    keys, *by_itself = [[] if each.keys is None else each.keys.tolist() for each in located]
    assert sorted(keys) == sorted(itertools.chain(*by_itself))


@settings(max_examples=25)
@given(SHARDS, st.randoms(use_true_random=False))
def test_rows_are_the_same_in_whatever_order_they_are_asked_for(build, shards, random):
    dataset, _ = build(shards, 7)
    straight = [piece.tolist() for index in range(len(dataset)) for piece in dataset.sample(index)]
    again, order = build(shards, 7)[0], list(range(len(dataset)))
    random.shuffle(order)
    documents = again.read(again.locate(np.array(order, np.int64)))
    by_sample = np.split(np.arange(len(documents.lengths)), np.cumsum(documents.num_pieces)[:-1])
    parts = documents.split()
    rows = {index: [parts[n].tolist() for n in of] for index, of in zip(order, by_sample, strict=True)} if order else {}
    assert [piece for index in range(len(dataset)) for piece in rows[index]] == straight


@pytest.mark.parametrize("longest", [30, 63])
def test_only_documents_longer_than_a_row_are_cut_where_the_others_go_together(build, longest):
    lengths = np.random.default_rng(longest).integers(2, longest, 2000).tolist()
    dataset, _ = build([lengths[:700], lengths[700:]], 64, 40)
    found = dataset.read(dataset.locate(np.arange(len(dataset))))
    assert np.count_nonzero(found.is_cut) < 0.03 * len(lengths)
    assert len(dataset) * 64 < 1.05 * sum(lengths)


def test_what_is_remembered_of_rows_does_not_grow_with_the_dataset(build, monkeypatch):
    monkeypatch.setattr(module, "MAX_KEPT_PIECES", 300)
    monkeypatch.setattr(module, "PIECES_AT_ONCE", 100)
    dataset, _ = build([[9] * 6000], 32, 8)
    expected = build([[9] * 6000], 32, 8)[0]
    every = np.random.default_rng(1).permutation(len(dataset))
    located = [dataset.locate(every[at : at + 16]) for at in range(0, len(every), 16)]
    kept = sum(len(rows.start) for rows in dataset._kept.values())
    assert kept == dataset._num_kept <= 300
    one = expected.locate(every)
    assert np.array_equal(np.concatenate([each.parts.start for each in located]), one.parts.start)


def test_a_block_whose_text_all_belongs_to_the_one_before_has_empty_rows(build):
    dataset, documents = build([[13, 10, 3]], 12, 2)
    found = dataset.read(dataset.locate(np.arange(len(dataset))))
    assert found.num_pieces.tolist() == [1, 0, 2, 0, 0]
    assert sorted(map(len, found.split())) == sorted(map(len, documents))


@pytest.mark.parametrize(("shape", "name"), EVERY_PAIR)
def test_every_objective_fills_rows_of_every_shape_and_leaves_little_out(text_dataset, shape, name):
    made = Reading(
        text_dataset, Manifest.load(text_dataset), ObjectiveConfig(name=name), shape, 128, 4, 1, packing="best_fit"
    )
    maker = BatchMaker(made, "train")
    every = np.arange(len(maker.dataset))
    batches = list(maker(every, every))
    assert sum(batch.num_left_out for batch in batches) < 0.01 * maker.dataset.num_tokens
    texts = [batch.tokens for batch in batches] + [batch.labels for batch in batches]
    texts += [batch.encoder.tokens for batch in batches if batch.encoder]
    assert np.isin(np.arange(samples.FIRST_TEXT, samples.FIRST_TEXT + 20), np.concatenate(texts)).all()
    for counters in (every, every + len(every)):  # a pass, and the next one with other draws
        again = [
            batch
            for start in range(0, len(every), 4)
            for batch in maker(counters[start : start + 4], every[start : start + 4])
        ]
        first = list(maker(counters, every))
        assert all(
            (a.tokens == b.tokens).all() and (a.labels == b.labels).all() for a, b in zip(again, first, strict=True)
        )


def test_a_resumed_loader_goes_on_where_it_stopped_on_any_number_of_ranks(text_dataset):
    prefix_lm = ObjectiveConfig(name="prefix_lm")
    options = {"objective": prefix_lm, "shape": "encdec", "sequence_length": 64, "packing": "best_fit", "seed": 3}
    with loader(text_dataset, **options, micro_batch_size=2, global_batch_size=8) as one:
        straight = [next(one) for _ in range(12)]
    halves = []
    for rank in range(2):
        place = {"rank": rank, "world_size": 2, "micro_batch_size": 4, "global_batch_size": 8}
        with loader(text_dataset, **options, **place, samples_consumed=8 * 5) as resumed:
            halves.append([next(resumed) for _ in range(7)])
    for number, batches in enumerate(straight[5:]):
        labels = [label for batch in batches for label in batch.labels.tolist() if label >= 0]
        shared = [label for half in halves for batch in half[number] for label in batch.labels.tolist() if label >= 0]
        assert labels == shared


def test_pairs_of_rows_are_filled_though_it_is_drawn_how_documents_are_split(
    tmp_path, write_dataset, numbered_documents
):
    lengths = np.random.default_rng(2).integers(20, 600, 120).tolist()
    folder = write_dataset(tmp_path, {"train": [numbered_documents(lengths)]})
    padding = {}
    for packing in ("windows", "best_fit"):
        prefix_lm = ObjectiveConfig(name="prefix_lm")
        how = Reading(folder, Manifest.load(folder), prefix_lm, "encdec", 128, 1, 1, pad_id=0, packing=packing)
        maker = BatchMaker(how, "train")
        every = np.arange(len(maker.dataset))
        batches = list(maker(every, every))
        spaces = sum(len(batch.tokens) + len(batch.encoder.tokens) for batch in batches)
        padding[packing] = sum(batch.num_padding + batch.encoder.num_padding for batch in batches) / spaces
    assert padding["windows"] > 0.25
    assert padding["best_fit"] < 0.05
    assert sum(batch.num_left_out for batch in batches) < 0.01 * sum(lengths)
