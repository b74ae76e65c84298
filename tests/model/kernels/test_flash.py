"""The calls made to flash-attn, against a stand-in with its documented semantics; the real one: test_flash_gpu.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.kernels import flash
from model.kernels.attention import Scoring, attend
from model.kernels.scoring import PLAIN
from tests.model.kernels.varlen_stand_in import varlen_stand_in
from tests.model.packs import HEADS, SCORINGS, SEEDS, bias_of, crossing_of, pattern_of, patterns, places_of, qkv_for


@pytest.fixture
def calls(monkeypatch):
    """What the stand-in is called with."""
    found = []

    def kernel(*args, **kwargs):
        found.append((args, kwargs))
        return varlen_stand_in(*args, **kwargs)

    monkeypatch.setattr(flash, "varlen_kernel", lambda: kernel)
    return found


def outputs_and_gradients(tensors, pattern, backend, bias=None, scoring=PLAIN):
    inputs = [x.detach().requires_grad_() for x in tensors[:3]]
    out = attend(*inputs, pattern, backend, bias, scoring)
    return [out.detach(), *torch.autograd.grad(out, inputs, tensors[3], materialize_grads=True)]


@settings(max_examples=150, deadline=None)
@given(patterns(), HEADS, st.sampled_from([None, "alibi"]), SCORINGS, SEEDS)
def test_the_calls_give_the_reference_in_value_and_gradients(pattern, heads, bias, scoring, seed):
    tensors = qkv_for(pattern, heads, torch.float64, seed)
    bias = bias_of(bias, heads[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash, "varlen_kernel", lambda: varlen_stand_in)
        ours = outputs_and_gradients(tensors, pattern, "flash", bias, scoring)
    expected = outputs_and_gradients(tensors, pattern, "reference", bias, scoring)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (pattern_of([4, 6], [0, 1]), [True]),
        (pattern_of([4, 6], [4, 6]), [False]),
        (pattern_of([4, 6], [2, 0]), [False, True]),
        (crossing_of([4, 0, 1], [2, 3, 0]), [False]),
    ],
)
def test_packs_of_one_kind_take_one_call_and_mixed_ones_two(calls, pattern, expected):
    attend(*qkv_for(pattern, (2, 1), torch.float64)[:3], pattern, "flash")
    assert [kwargs["causal"] for _, kwargs in calls] == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (pattern_of([9, 6], [0, 1]), [(4, 0)]),
        (pattern_of([9, 6], [9, 6]), [(2, 2)]),
        (pattern_of([9, 6], [7, 0]), [(2, 2), (4, 0)]),
        (pattern_of([5, 3], [0, 0]), [(-1, -1)]),
        (crossing_of([9], [6]), [(-1, -1)]),
    ],
)
def test_windows_go_along_where_they_hide_something(calls, pattern, expected):
    near = pattern.within(5) if pattern.cu_seqlens_q is pattern.cu_seqlens_k else pattern
    attend(*qkv_for(near, (2, 1), torch.float64)[:3], near, "flash")
    assert [kwargs["window_size"] for _, kwargs in calls] == expected


def test_gradients_are_asked_for_in_a_fixed_order(calls):
    pattern = pattern_of([4, 6], [2, 0])
    attend(*qkv_for(pattern, (2, 1), torch.float64)[:3], pattern, "flash")
    assert all(kwargs["deterministic"] for _, kwargs in calls)


def test_prefixes_go_apart_from_the_tokens_after_them(calls):
    """The first call has the prefixes alone, the second the other queries and the keys of whole documents."""
    pattern = pattern_of([4, 6, 3, 5], [2, 0, 3, 4])
    q, k, v, _ = qkv_for(pattern, (2, 1), torch.float64)
    attend(q, k, v, pattern, "flash")
    (first, _), (second, _) = calls
    assert [x.tolist() for x in first[3:5]] == [[0, 2, 2, 5, 9]] * 2
    assert first[5:] == (4, 4)
    places = [0, 1, 10, 11, 12, 13, 14, 15, 16]
    assert torch.equal(first[0], q[places]) and torch.equal(first[1], k[places])
    assert [x.tolist() for x in second[3:5]] == [[0, 2, 8, 8, 9], [0, 4, 10, 13, 18]]
    assert second[5:] == (6, 6)
    assert second[1] is k and second[2] is v


def test_two_packs_keep_their_own_borders(calls):
    pattern = crossing_of([4, 0, 1], [2, 7, 0])
    attend(*qkv_for(pattern, (2, 1), torch.float64)[:3], pattern, "flash")
    ((args, _),) = calls
    assert [x.tolist() for x in args[3:5]] == [[0, 4, 4, 5], [0, 2, 9, 9]]
    assert args[5:] == (4, 7)


@pytest.mark.parametrize("pattern", [crossing_of([1, 0, 1], [2, 3, 4]), pattern_of([5, 6], [4, 6])])
def test_single_queries_beside_empty_documents_are_not_told_to_be_single(calls, pattern):
    """flash-attn reshapes queries of grouped heads when the longest document has one: no document may be empty then."""
    attend(*qkv_for(pattern, (4, 2), torch.float64)[:3], pattern, "flash")
    assert all(args[5] >= 2 for args, _ in calls)


@pytest.mark.parametrize(
    ("scoring", "expected"),
    [(PLAIN, (None, 0.0)), (Scoring(softcap=50.0), (None, 50.0)), (Scoring(0.1, 30.0), (0.1, 30.0))],
)
def test_scale_and_soft_cap_go_along_with_every_call(calls, scoring, expected):
    """flash-attn takes 0 for no cap, and no scale for one by the width of heads."""
    pattern = pattern_of([4, 6], [2, 0])
    attend(*qkv_for(pattern, (4, 2), torch.float64)[:3], pattern, "flash", None, scoring)
    assert [(kwargs["softmax_scale"], kwargs["softcap"]) for _, kwargs in calls] == [expected] * 2


def test_slopes_go_along_in_fp32(calls):
    pattern = pattern_of([4, 6], [2, 0])
    bias = bias_of("alibi", 4)
    attend(*qkv_for(pattern, (4, 2), torch.float64)[:3], pattern, "flash", bias)
    assert len(calls) == 2
    assert all(torch.equal(kwargs["alibi_slopes"], bias.slopes) for _, kwargs in calls)


@pytest.mark.parametrize("bias", [None, "alibi"])
@pytest.mark.parametrize("pattern", [pattern_of([9, 14, 1, 5], [0, 6, 1, 5]), crossing_of([9, 0, 7, 3], [5, 4, 20, 0])])
def test_a_document_is_not_changed_by_the_others_to_the_last_bit(calls, pattern, bias):
    tensors = qkv_for(pattern, (4, 2), torch.float32)
    bias = bias_of(bias, 4)
    before = outputs_and_gradients(tensors, pattern, "flash", bias)
    for number in range(len(pattern.documents)):
        queries, keys = places_of(pattern, number)
        mine = [queries, keys, keys, queries]
        changed = [torch.where(own[:, None, None], x, 3.7) for own, x in zip(mine, tensors, strict=True)]
        after = outputs_and_gradients(changed, pattern, "flash", bias)
        for own, one, other in zip([queries, *mine[:3]], after, before, strict=True):
            assert torch.equal(one[own], other[own])


def test_a_learned_bias_does_not_get_this_far():
    pattern = pattern_of([3], [0])
    with pytest.raises(AssertionError, match="resolve_backend"):
        attend(*qkv_for(pattern, (2, 2), torch.float64)[:3], pattern, "flash", bias_of("one direction", 2))
