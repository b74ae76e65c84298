"""The loader is a function of its counter alone: ranks, micro-batches, restarts and threads change nothing."""

import gc
import threading
import time
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.config import ObjectiveConfig
from data_pipeline.manifest import Manifest
from data_pipeline.reading import batches as module
from data_pipeline.reading.packing import IGNORED
from tests.data_pipeline.opened import evaluation, loader, opened

LENGTH = 32


def num_threads():
    """Loaders' threads alone; libraries start others when they like."""
    return sum(thread.name == "loader" for thread in threading.enumerate())


def loader_of(path, **changes):
    """A loader of one rank over 32-token samples in global batches of 8."""
    options = {
        "split": "train",
        "objective": ObjectiveConfig(),
        "shape": "causal",
        "sequence_length": LENGTH,
        "micro_batch_size": 2,
        "global_batch_size": 8,
        "rank": 0,
        "world_size": 1,
        "seed": 11,
        "pad_id": 3,
    }
    return loader(path, **{**options, **changes})


def take(loader, count):
    with loader:
        return [next(loader) for _ in range(count)]


def documents_in(batches):
    """How often each (tokens, labels) document is in some batches, whatever their order."""
    counts = Counter()
    for batch in batches:
        starts = batch.cu_seqlens.tolist()
        for a, b in islice(pairwise(starts), batch.num_documents):
            counts[tuple(batch.tokens[a:b].tolist()), tuple(batch.labels[a:b].tolist())] += 1
    return counts


def values(batches):
    """Everything in some global batches, comparable."""
    return [
        [{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in vars(micro).items()} for micro in batch]
        for batch in batches
    ]


@pytest.fixture(scope="module")
def path(varied_dataset):
    return varied_dataset


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size"), [(1, 1), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2), (8, 1)]
)
def test_a_global_batch_is_the_same_for_any_ranks_and_micro_batches(path, world_size, micro_batch_size):
    expected = [documents_in(batch) for batch in take(loader_of(path, prefetch=0), 40)]
    sizes = {"world_size": world_size, "micro_batch_size": micro_batch_size}
    ranks = [take(loader_of(path, rank=rank, **sizes), 40) for rank in range(world_size)]
    for number, documents in enumerate(expected):
        batches = [micro for rank in ranks for micro in rank[number]]
        assert documents_in(batches) == documents
        assert len(batches) == 8 // micro_batch_size
        assert {len(micro.tokens) for micro in batches} == {micro_batch_size * LENGTH}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 70), st.sampled_from([0, 1, 3]), st.integers(0, 2**63 - 1))
def test_a_loader_started_in_the_middle_goes_on_exactly(path, done, prefetch, seed):
    whole = take(loader_of(path, seed=seed), done + 4)
    resumed = loader_of(path, seed=seed, samples_consumed=8 * done, prefetch=prefetch)
    assert values(take(resumed, 4)) == values(whole[done:])


def test_a_run_may_go_on_with_another_global_batch_size(path):
    small = take(loader_of(path, global_batch_size=4), 6)
    large = take(loader_of(path, samples_consumed=4), 2)
    for number, batch in enumerate(large):
        assert documents_in(batch) == documents_in([*small[2 * number + 1], *small[2 * number + 2]])


def test_samples_consumed_counts_what_was_handed_out_not_what_was_prepared(path):
    with loader_of(path, samples_consumed=16, prefetch=4) as loader:
        for number in range(1, 5):
            assert loader.samples_consumed == 16 + 8 * (number - 1)
            next(loader)
        assert loader.samples_consumed == 48


def test_an_epoch_has_every_target_exactly_once(path):
    dataset = opened(path, "train", LENGTH)
    tokens = [token for index in range(len(dataset)) for piece in dataset.sample(index) for token in piece[1:]]
    batches = take(loader_of(path, global_batch_size=1, micro_batch_size=1), len(dataset))
    targets = torch.cat([micro.labels for batch in batches for micro in batch])
    assert Counter(targets[targets != IGNORED].tolist()) == Counter(tokens)
    assert sum(micro.num_targets for batch in batches for micro in batch) == len(tokens)


def test_labels_are_the_next_tokens_of_the_document(path):
    # in this dataset every token is the one before it plus 1, also across documents
    for batch in take(loader_of(path), 20):
        for micro in batch:
            real = micro.labels != IGNORED
            assert torch.equal(micro.labels[real], micro.tokens[real] + 1)
            assert micro.num_padding == int((~real).sum())


def test_counts_of_cut_documents_and_padding_are_exact(path):
    dataset = opened(path, "train", LENGTH)
    ends, at = set(), 0
    for shard in range(3):
        reader = dataset._reader(shard)
        ends |= {at + int(start) for start in reader.boundaries(0, reader.num_tokens)}
        at += reader.num_tokens
    batches = take(loader_of(path, shuffle=False, micro_batch_size=1, global_batch_size=1), len(dataset))
    for index, (batch,) in enumerate(batches):
        start, stop = index * LENGTH, index * LENGTH + LENGTH + 1
        borders = sorted({start, stop, *(end for end in ends if start < end < stop)})
        pieces = list(pairwise(borders))
        packed = [(a, b) for a, b in pieces if b - a > 1]
        is_end = {*ends, at}
        assert batch.num_cut == sum(not (a in is_end and b in is_end) for a, b in packed)
        assert batch.num_vanished == len(pieces) - len(packed)
        assert batch.num_padding == LENGTH - sum(b - a - 1 for a, b in packed)


def test_without_shuffling_samples_come_in_order_and_start_again(path):
    with loader_of(path, shuffle=False, micro_batch_size=1, global_batch_size=1) as loader:
        first = next(loader)[0]
        assert first.tokens[0] == 1
        for _ in range(loader.num_samples - 1):
            next(loader)
        assert torch.equal(next(loader)[0].tokens, first.tokens)


def test_seeds_and_epochs_give_other_orders(path):
    with loader_of(path) as loader:
        per_epoch = loader.num_samples // 8
    epochs = values(take(loader_of(path), 2 * per_epoch))
    assert epochs[:per_epoch] != epochs[per_epoch:]
    assert values(take(loader_of(path, seed=12), 3)) != epochs[:3]


def test_it_tells_what_a_run_must_remember(path):
    with loader_of(path) as loader:
        assert loader.fingerprint == Manifest.load(path).fingerprint
        assert loader.num_samples == len(opened(path, "train", LENGTH))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 6, "micro_batch_size": 4}, r"global_batch_size: 6 is not a multiple of .* 4 times 1"),
        ({"world_size": 3, "micro_batch_size": 4}, "8 is not a multiple of micro_batch_size 4 times 3 ranks"),
        ({"sequence_length": 4000}, r"2 samples of sequence_length 4000; a global batch needs 8"),
        ({"pad_id": 60_000}, "pad id 60000 is not in its vocabulary of 60000"),
        ({"split": "test"}, "no split 'test'"),
        ({"shape": "encoder"}, "next_token means nothing for an encoder model: an encoder sees"),
    ],
)
def test_sizes_that_cannot_work_are_refused_in_one_sentence(path, changes, message):
    before = num_threads()
    with pytest.raises(ValueError, match=message) as caught:
        loader_of(path, **changes)
    assert "\n" not in str(caught.value)
    assert num_threads() == before


@pytest.mark.parametrize("prefetch", [0, 2])
def test_damage_found_while_reading_is_raised_where_batches_are_taken(
    tmp_path, write_dataset, numbered_documents, prefetch
):
    folder = write_dataset(tmp_path, {"train": [numbered_documents([40] * 20), numbered_documents([50] * 10)]})
    body = bytearray((folder / "train-00001.bin").read_bytes())
    body[100] ^= 1
    (folder / "train-00001.bin").write_bytes(body)
    options = {"shuffle": False, "global_batch_size": 2, "sequence_length": 100, "prefetch": prefetch}
    with loader_of(folder, **options) as loader:
        with pytest.raises(ValueError, match=r"train-00001\.bin: checksum mismatch in bytes 0 to 999"):
            for _ in range(10):
                next(loader)
        assert loader.samples_consumed < 10


def test_no_more_is_prepared_than_asked_for(path, monkeypatch):
    made = []

    def counted(*args):
        made.append(args)
        return original(*args)

    original = module.pack_layout
    monkeypatch.setattr(module, "pack_layout", counted)
    monkeypatch.setattr(module, "SAMPLES_AT_ONCE", 1)
    with loader_of(path, prefetch=3):
        wait_for(lambda: len(made) >= 4 * 4)
        time.sleep(0.1)
        assert len(made) == 4 * 4


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_closing_ends_the_thread_and_reading_on_is_an_error(path):
    before = num_threads()
    loader = loader_of(path)
    next(loader)
    assert num_threads() == before + 1
    loader.close()
    loader.close()
    assert num_threads() == before
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_a_forgotten_loader_ends_its_thread(path):
    before = num_threads()
    loader = loader_of(path)
    next(loader)
    del loader
    gc.collect()
    wait_for(lambda: num_threads() == before)


def test_batches_do_not_change_while_someone_holds_them(path):
    with loader_of(path) as loader:
        held = [next(loader) for _ in range(3)]
        before = values(held)
        for _ in range(30):
            next(loader)
        assert values(held) == before


EVALUATION = {
    "objective": ObjectiveConfig(),
    "shape": "causal",
    "sequence_length": LENGTH,
    "micro_batch_size": 3,
    "pad_id": 3,
}


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("num_samples", [None, 1, 7, 1000])
def test_evaluation_sees_each_chosen_sample_once_over_all_ranks(path, world_size, num_samples):
    options = {**EVALUATION, "num_samples": num_samples, "world_size": world_size}
    ranks = [evaluation(path, rank=rank, **options) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    found = documents_in([batch for batches in ranks for batch in batches])
    alone = evaluation(path, rank=0, **{**options, "world_size": 1})
    assert found == documents_in(alone)
    assert ranks[0].num_samples == min(num_samples or 10**6, len(opened(path, "validation", LENGTH, keep_tail=True)))
    assert {len(batch.tokens) for batches in ranks for batch in batches} == {3 * LENGTH}


def test_evaluation_of_everything_has_every_target_once(path):
    dataset = opened(path, "validation", LENGTH, keep_tail=True)
    batches = evaluation(path, rank=0, world_size=1, **EVALUATION)
    num_documents = dataset.manifest.num_documents("validation")
    assert sum(batch.num_targets for batch in batches) == dataset.num_tokens - num_documents
    assert values([batches]) == values([list(batches)]) == values([batches[:]])


def test_evaluation_samples_are_spread_over_the_split(path):
    dataset = opened(path, "validation", LENGTH, keep_tail=True)
    batches = evaluation(path, rank=0, world_size=1, **{**EVALUATION, "micro_batch_size": 1}, num_samples=4)
    firsts = [int(batch.tokens[0]) for batch in batches]
    offset = firsts[0]
    assert np.abs(np.array(firsts) - offset - np.arange(4) * dataset.num_tokens / 4).max() < 3 * LENGTH


def test_a_rank_without_samples_gets_padding_only(path):
    batches = evaluation(path, rank=1, world_size=2, num_samples=1, **EVALUATION)
    assert [(batch.num_targets, batch.num_padding) for batch in batches] == [(0, 3 * LENGTH)]


def test_an_empty_split_cannot_be_evaluated(tmp_path, write_dataset, numbered_documents):
    folder = write_dataset(tmp_path, {"train": [numbered_documents([9, 9])], "validation": []})
    with pytest.raises(ValueError, match=r"split validation has 0 tokens.*validation_fraction"):
        evaluation(folder, rank=0, world_size=1, **EVALUATION)
