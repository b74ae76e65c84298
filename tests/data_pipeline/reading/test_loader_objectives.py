"""The loader with every objective and shape: the same samples whatever the ranks, and no target lost."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from data_pipeline.reading.packing import IGNORED
from tests.data_pipeline.opened import evaluation, loader, opened
from tests.data_pipeline.reading.test_budget import PAIRS, config_of
from tests.data_pipeline.reading.test_loader import take, values
from tests.data_pipeline.samples import BOS, EOS, FIRST_TEXT, SPECIAL, is_sentinel, restored


def options_of(name, shape):
    return {"objective": config_of(name, shape), "shape": shape, "sequence_length": 96}


def loader_of(path, name, shape, **changes):
    options = {"global_batch_size": 8, "micro_batch_size": 2, "rank": 0, "world_size": 1, "seed": 11, "prefetch": 0}
    return loader(path, **{**options_of(name, shape), **options, **changes})


def documents_of(batch):
    """Tokens, labels, prefix length and encoder's tokens of each document, padding left out."""
    bounds = list(pairwise(batch.cu_seqlens.tolist()))
    others = list(pairwise(batch.encoder.cu_seqlens.tolist())) if batch.encoder else [(0, 0)] * len(bounds)
    read = batch.encoder.tokens if batch.encoder else batch.tokens
    return [
        (batch.tokens[a:b].tolist(), batch.labels[a:b].tolist(), int(prefix), read[c:d].tolist())
        for (a, b), (c, d), prefix in list(zip(bounds, others, batch.prefix_lengths, strict=True))[
            : batch.num_documents
        ]
    ]


def counted(batches):
    """How often each document is in some batches, and the sums of their counts."""
    documents = Counter(str(document) for batch in batches for document in documents_of(batch))
    names = ("num_targets", "num_cut", "num_vanished", "num_left_out", "num_padding")
    sums = {name: sum(getattr(batch, name) for batch in batches) for name in names}
    return documents, sums


@pytest.mark.parametrize(("name", "shape"), PAIRS)
def test_a_global_batch_is_the_same_for_any_ranks_and_micro_batches(text_dataset, name, shape):
    expected = [counted(batch) for batch in take(loader_of(text_dataset, name, shape), 12)]
    for world_size, micro_batch_size in [(1, 8), (2, 1), (4, 2)]:
        sizes = {"world_size": world_size, "micro_batch_size": micro_batch_size}
        ranks = [take(loader_of(text_dataset, name, shape, rank=rank, **sizes), 12) for rank in range(world_size)]
        for number, known in enumerate(expected):
            assert counted([micro for rank in ranks for micro in rank[number]]) == known


@pytest.mark.parametrize(("name", "shape"), PAIRS)
def test_a_loader_started_in_the_middle_goes_on_exactly(text_dataset, name, shape):
    whole = values(flat(batch) for batch in take(loader_of(text_dataset, name, shape), 14))
    resumed = take(loader_of(text_dataset, name, shape, samples_consumed=88, prefetch=2), 3)
    assert values(flat(batch) for batch in resumed) == whole[11:]


def flat(batches):
    """Batches whose encoder's row can be compared, as namespaces."""

    class Flat:
        pass

    found = []
    for batch in batches:
        flat = Flat()
        vars(flat).update(vars(batch))
        if batch.encoder:
            vars(flat).update({f"encoder_{name}": value for name, value in vars(batch.encoder).items()})
        del flat.encoder
        found.append(flat)
    return found


@pytest.mark.parametrize(("name", "shape"), PAIRS)
def test_labels_are_in_the_vocabulary_and_counted(text_dataset, name, shape):
    with loader_of(text_dataset, name, shape) as loader:
        assert loader.lengths.row == 96
        for batch in next(loader):
            labels = batch.labels[batch.labels != IGNORED]
            assert len(labels) == batch.num_targets > 0
            assert labels.min() >= 0 and labels.max() < 1000
            assert len(batch.tokens) == 2 * (loader.lengths.target_row or 96)
            assert (batch.encoder is not None) == (shape == "encdec")
            if batch.encoder:
                assert len(batch.encoder.tokens) == 2 * 96
                assert set(batch.tokens[batch.cu_seqlens[: batch.num_documents]].tolist()) == {BOS}


@pytest.mark.parametrize("name", ["span_corruption", "ul2", "blank_infilling"])
@pytest.mark.parametrize("shape", ["causal", "prefix", "encdec"])
def test_over_an_epoch_every_token_is_read_or_predicted_unless_it_was_left_out(text_dataset, name, shape):
    found = Counter()
    left_out = vanished = 0
    with loader_of(text_dataset, name, shape, global_batch_size=1, micro_batch_size=1) as loader:
        window, count = loader.lengths.window, loader.num_samples
        for _ in range(count):
            (batch,) = next(loader)
            left_out, vanished = left_out + batch.num_left_out, vanished + batch.num_vanished
            for tokens, labels, _, read in documents_of(batch):
                if shape == "encdec":
                    inputs, targets = read, [*tokens[1:], labels[-1]]
                else:
                    end = tokens.index(EOS) + 1
                    inputs, targets = tokens[:end], [*tokens[end:], labels[-1]]
                found.update(restored(inputs, targets))
    dataset = opened(text_dataset, "train", window, overlap=0)
    pieces = [piece.tolist() for index in range(count) for piece in dataset.sample(index)]
    expected = Counter(token for piece in pieces for token in piece if token >= FIRST_TEXT)
    missing = expected - found
    assert not found - expected
    # a piece that vanishes holds one token of text at most
    assert missing.total() <= left_out + vanished
    assert left_out < 0.05 * expected.total()


def test_over_an_epoch_masked_tokens_are_the_text_of_their_places(text_dataset):
    with loader_of(text_dataset, "masked_lm", "encoder", global_batch_size=1, micro_batch_size=1) as loader:
        batches = [next(loader)[0] for _ in range(loader.num_samples)]
    text = sum(int((batch.tokens >= FIRST_TEXT).sum() + (batch.tokens == SPECIAL["mask"]).sum()) for batch in batches)
    assert sum(batch.num_left_out for batch in batches) == 0
    assert sum(batch.num_targets for batch in batches) / text == pytest.approx(0.15, abs=0.03)
    assert all(not (batch.labels == EOS).any() and not (batch.labels == BOS).any() for batch in batches)


@pytest.mark.parametrize(("name", "shape"), PAIRS)
def test_evaluation_sees_each_sample_once_over_all_ranks(text_dataset, name, shape):
    options = {**options_of(name, shape), "micro_batch_size": 3}
    alone = counted(evaluation(text_dataset, rank=0, world_size=1, **options))
    ranks = [evaluation(text_dataset, rank=rank, world_size=2, **options) for rank in range(2)]
    together = counted([batch for batches in ranks for batch in batches])
    assert len(ranks[0]) == len(ranks[1])
    assert alone[0] == together[0] and alone[1]["num_targets"] == together[1]["num_targets"]


def test_an_empty_batch_of_an_encoder_decoder_is_padding_in_both_rows(text_dataset):
    options = {**options_of("span_corruption", "encdec"), "micro_batch_size": 3, "num_samples": 1}
    (batch,) = evaluation(text_dataset, rank=1, world_size=2, **options)
    assert batch.num_targets == 0
    assert batch.num_padding == len(batch.tokens) and batch.encoder.num_padding == len(batch.encoder.tokens)


def test_the_row_of_targets_may_be_chosen(text_dataset):
    with loader_of(text_dataset, "span_corruption", "encdec", target_length=20) as loader:
        batches = next(loader)
        assert loader.lengths.target_row == 20
    assert {len(batch.tokens) for batch in batches} == {40}
    assert {len(batch.encoder.tokens) for batch in batches} == {192}


def test_padding_is_the_tokenizers_own_pad(text_dataset):
    (batch,) = evaluation(
        text_dataset, rank=1, world_size=2, micro_batch_size=1, num_samples=1, **options_of("next_token", "causal")
    )
    assert np.unique(batch.tokens).tolist() == [SPECIAL["pad"]]


def test_pairs_and_other_objectives_share_a_batch(text_dataset):
    with loader_of(text_dataset, "mixture", "encoder") as loader:
        batches = [batch for _ in range(5) for batch in next(loader)]
    firsts = [tokens[0] for batch in batches for tokens, _, _, _ in documents_of(batch)]
    assert SPECIAL["cls"] in firsts and BOS in firsts
    labels = {label for batch in batches for label in batch.labels.tolist() if is_sentinel(label)}
    assert len(labels) == 2
