import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.kernels.attention import AttentionPattern
from tests.model.packs import crossing_of, crossings, documents, pattern_of, patterns


def allowed(lengths, prefixes, window=None):
    """The definition, pair by pair."""
    total = sum(lengths)
    mask = torch.zeros(total, total, dtype=torch.bool)
    start = 0
    for n, p in zip(lengths, prefixes, strict=True):
        for i in range(n):
            for j in range(n):
                near = window is None or (abs(i - j) <= window // 2 if i < p else i - j < window)
                mask[start + i, start + j] = (j <= i or j < p) and near
        start += n
    return mask


@settings(max_examples=100, deadline=None)
@given(documents(), st.none() | st.integers(2, 13))
def test_dense_mask_is_the_definition_and_pairs_are_counted_exactly(pack, window):
    pattern = pattern_of(*pack).within(window)
    expected = allowed(*pack, window)
    assert torch.equal(pattern.dense_mask(), expected)
    assert pattern.num_pairs == int(expected.sum())
    assert pattern.num_queries == pattern.num_keys == sum(pack[0])
    assert pattern.max_queries == pattern.max_keys == max(pack[0])


@settings(max_examples=60, deadline=None)
@given(crossings())
def test_paired_documents_see_all_of_each_other_and_nothing_else(pack):
    pattern = crossing_of(*pack)
    blocks = [torch.ones(queries, keys) for queries, keys in zip(*pack, strict=True)]
    assert torch.equal(pattern.dense_mask(), torch.block_diag(*blocks).bool())
    assert pattern.num_pairs == sum(queries * keys for queries, keys in zip(*pack, strict=True))
    assert (pattern.num_queries, pattern.num_keys) == (sum(pack[0]), sum(pack[1]))
    assert (pattern.max_queries, pattern.max_keys) == (max(pack[0]), max(pack[1]))
    assert pattern.is_bidirectional


@settings(max_examples=60, deadline=None)
@given(documents())
def test_causal_and_bidirectional_packs_know_what_they_are(pack):
    pattern = pattern_of(*pack)
    causal = allowed(pack[0], [0] * len(pack[0]))
    whole = allowed(pack[0], pack[0])
    assert pattern.is_causal == torch.equal(pattern.dense_mask(), causal)
    # A document may have the full square without being marked so (all but its last token are prefix).
    assert not pattern.is_bidirectional or torch.equal(pattern.dense_mask(), whole)
    assert pattern.is_bidirectional or pack[0] != pack[1]


@settings(max_examples=100, deadline=None)
@given(patterns(windows=False))
def test_split_takes_the_pack_apart_and_back_together(pattern):
    split = pattern.split
    places = torch.arange(pattern.num_queries)
    apart = torch.cat((places[split.square_queries], places[split.causal_queries]))
    assert torch.equal(apart[split.inverse], places)
    assert split.cu_square_queries.diff().tolist() == [d.num_square for d in pattern.documents]
    assert split.cu_square_keys.diff().tolist() == [d.prefix for d in pattern.documents]
    assert split.cu_causal_queries.diff().tolist() == [d.num_causal for d in pattern.documents]
    assert len(split.square_keys) == split.cu_square_keys[-1]
    assert all(x.dtype == torch.int32 for x in (split.cu_square_queries, split.cu_square_keys, split.cu_causal_queries))


@settings(max_examples=100, deadline=None)
@given(patterns(windows=False))
def test_the_two_parts_of_a_split_are_the_whole_pattern(pattern):
    """Squares without any mask, and the other queries aligned at the bottom right of all keys."""
    seen = torch.zeros(pattern.num_queries, pattern.num_keys, dtype=torch.bool)
    split, first_key = pattern.split, 0
    for number, document in enumerate(pattern.documents):
        square_queries, square_keys, causal_queries = (
            index[cu[number] : cu[number + 1]]
            for index, cu in (
                (split.square_queries, split.cu_square_queries),
                (split.square_keys, split.cu_square_keys),
                (split.causal_queries, split.cu_causal_queries),
            )
        )
        seen[square_queries[:, None], square_keys] = True
        rows = torch.ones(len(causal_queries), document.num_keys, dtype=torch.bool)
        seen[causal_queries, first_key : first_key + document.num_keys] = rows.tril(
            document.num_keys - len(causal_queries)
        )
        first_key += document.num_keys
    assert torch.equal(seen, pattern.dense_mask())


def test_queries_stand_at_the_end_of_their_keys():
    assert pattern_of([3], [0]).dense_distances().tolist() == [[0, 1, 2], [-1, 0, 1], [-2, -1, 0]]
    assert crossing_of([2], [3]).dense_distances().tolist() == [[-1, 0, 1], [-2, -1, 0]]
    assert crossing_of([3], [2]).dense_distances().tolist() == [[1, 2], [0, 1], [-1, 0]]


def test_borders_are_int32_whatever_comes_in():
    pattern = AttentionPattern.packed(torch.tensor([0, 3, 4]), torch.tensor([1, 0]))
    assert pattern.cu_seqlens_q.dtype == pattern.cu_seqlens_k.dtype == torch.int32
    crossing = AttentionPattern.cross(torch.tensor([0, 3]), torch.tensor([0, 5]))
    assert crossing.cu_seqlens_q.dtype == crossing.cu_seqlens_k.dtype == torch.int32


@pytest.mark.parametrize(
    ("borders", "prefixes"), [([0, 3], [4]), ([0, 3], [-1]), ([1, 3], [0]), ([0, 3, 2], [0, 0]), ([0, 3], [0, 0])]
)
def test_nonsense_is_refused(borders, prefixes):
    with pytest.raises(AssertionError):
        AttentionPattern.packed(torch.tensor(borders), torch.tensor(prefixes))


def test_packs_with_unequal_numbers_of_documents_are_refused():
    with pytest.raises(AssertionError, match="as many documents"):
        AttentionPattern.cross(torch.tensor([0, 3]), torch.tensor([0, 3, 4]))


def test_a_window_that_hides_nothing_changes_nothing():
    """So that kernels take the path they take without one; the longest document decides."""
    causal, prefix, whole = pattern_of([5, 8], [0, 0]), pattern_of([9, 6], [4, 0]), pattern_of([5, 3], [5, 3])
    assert causal.within(8) is causal.within(None) is causal and causal.within(7).documents[0] == causal.documents[0]
    assert prefix.within(9) is prefix and prefix.within(8) is not prefix
    assert whole.within(8) is whole and whole.within(7).window == 7
    assert causal.within(7) is causal.within(7)


def test_a_window_between_two_packs_is_refused():
    with pytest.raises(AssertionError, match="attends to itself"):
        crossing_of([3], [9]).within(4)


@settings(max_examples=50, deadline=None)
@given(patterns(windows=False))
def test_a_window_goes_along_to_a_device_with_what_was_worked_out(pattern):
    if pattern.cu_seqlens_q is not pattern.cu_seqlens_k:
        return
    near = pattern.within(3)
    moved = pattern.prepare().to("meta")
    assert moved.within(3).documents == near.documents and moved.within(3).cu_seqlens_q.device.type == "meta"
    assert moved.within(3).__dict__["num_pairs"] == near.num_pairs
    assert (moved.within(3) is moved) == (near is pattern)
    if not (pattern.is_causal or pattern.is_bidirectional):
        assert moved.within(3).split is moved.split


@settings(max_examples=50, deadline=None)
@given(patterns())
def test_what_was_worked_out_on_the_host_goes_along_to_a_device(pattern):
    expected = pattern.__class__(pattern.cu_seqlens_q, pattern.cu_seqlens_k, pattern.documents, pattern.window)
    moved = pattern.prepare().to("meta")
    for name in ("num_queries", "num_keys", "max_queries", "max_keys", "num_pairs", "is_causal", "is_bidirectional"):
        assert moved.__dict__[name] == getattr(expected, name), name
    if not (expected.is_causal or expected.is_bidirectional):
        split = moved.__dict__["split"]
        assert split.square_queries.device.type == split.cu_causal_queries.device.type == "meta"
        assert split.square_queries.shape == expected.split.square_queries.shape
        assert split.max_causal_queries == expected.split.max_causal_queries
