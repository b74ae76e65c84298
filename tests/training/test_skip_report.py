"""What is told of a step that was passed over."""

import functools
import json
import math
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.skip_report import SHOWN, Findings, groups_of, norms_by_group

FIGURES = st.sampled_from([1.0, 2.5, 7.0, math.inf])
FOUND = st.builds(
    lambda rank, losses, norms: (
        Findings(
            tuple((loss, rank, number) for number, loss in enumerate(losses)),
            {name: (norm, rank) for name, norm in norms.items()},
        )
        + Findings((), {})
    ),
    st.integers(0, 5),
    st.lists(FIGURES, max_size=12),
    st.dictionaries(st.sampled_from(["head.weight", "blocks.0", "blocks.1"]), FIGURES),
)


@given(st.lists(FOUND, min_size=1, max_size=6), st.integers(0, 5))
def test_the_worst_of_all_ranks_are_the_same_however_they_are_joined(found, cut):
    whole = functools.reduce(operator.add, found)
    halves = [functools.reduce(operator.add, part) for part in (found[:cut], found[cut:]) if part]
    assert functools.reduce(operator.add, reversed(halves)).micro_batches == whole.micro_batches
    assert functools.reduce(operator.add, halves).gradients == whole.gradients
    losses = sorted((loss for each in found for loss, *_ in each.micro_batches), reverse=True)
    assert [loss for loss, *_ in whole.micro_batches] == losses[:SHOWN]


@pytest.mark.parametrize(
    "name, groups",
    [
        ("blocks.3.attention.qkv.weight", ("blocks.3", "blocks.*.attention.qkv.weight")),
        ("head.weight", ("head.weight", "head.weight")),
    ],
)
def test_a_parameter_counts_for_its_block_and_for_its_kind(name, groups):
    assert groups_of(name) == groups


def test_norms_add_up_in_squares_and_what_is_no_number_is_the_worst():
    norms = norms_by_group([("blocks.0.a", 9.0), ("blocks.0.b", 16.0), ("blocks.1.a", math.nan)])
    assert norms == {"blocks.0": 5.0, "blocks.1": math.inf, "blocks.*.a": math.inf, "blocks.*.b": 4.0}
    assert (
        Findings(((math.inf, 1, 0),), {}).as_json()
        == json.dumps(
            {"highest_losses": [{"loss": None, "rank": 1, "micro_batch": 0}], "largest_gradients": {}}, indent=1
        ).encode()
    )
