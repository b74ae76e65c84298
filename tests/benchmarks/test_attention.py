"""The comparison of attention, on packs that take no time."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention

from benchmarks import attention
from benchmarks.attention import Pack, attend, batched, block_mask_of, check_values, compare, dense

PACK = Pack("prefix 0.5", [5, 9, 2], [2, 4, 1])


def ours(q, k, v):
    return attend(q, k, v, PACK.pattern)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_all_sides_compute_the_same():
    block_mask = block_mask_of(PACK)
    flex = batched(lambda q, k, v: flex_attention(q, k, v, block_mask=block_mask, enable_gqa=True))
    check_values(PACK, ours, {"dense mask": dense(PACK), "flex_attention": flex})


def test_a_side_that_computes_something_else_ends_the_comparison():
    whole = batched(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
    with pytest.raises(SystemExit, match=r"prefix 0\.5: dense mask differs from ours by"):
        check_values(PACK, ours, {"dense mask": whole})


def test_ratios_are_medians_of_rounds_and_pairs_are_predicted_by_their_share():
    cost = {"ours": 2.0, "its pairs": 3.0, "dense mask": 8.0}
    unmasked = Pack("all pairs", [10], [10])
    sides = {name: (lambda *_, name=name: name) for name in cost}
    found = compare(PACK, unmasked, 3, sides, named_run(cost))
    assert found["dense mask"].ratio == pytest.approx(4.0)
    assert found["its pairs"].ratio == pytest.approx(1.5 * PACK.pattern.num_pairs / 100)
    assert found["dense mask"].ours == pytest.approx(2000.0)


def named_run(cost):
    def forward(_pack, side):
        return cost[side()]

    return forward


def test_packs_have_the_fractions_and_goals_end_where_the_mask_is_half_full():
    packs = list(attention.packs_of([8, 4]))
    assert [pack.prefixes for pack in packs] == [[0, 0], [2, 1], [4, 2], [8, 4], [0], [0], [8]]
    assert packs[4].allowed > attention.HALF_EMPTY
    assert [pack.window for pack in packs] == [None] * 5 + [attention.WINDOW] * 2
    assert packs[0].allowed == packs[0].pattern.dense_mask().float().mean()
    assert all(x.dtype == torch.float32 for x in packs[0].qkv)
