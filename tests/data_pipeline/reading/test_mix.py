"""Mixes that change on the way: no sample of a source comes twice in an epoch of it, none is left out."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.reading.mix import (
    Drawn,
    Mix,
    MixedOrder,
    MixedSource,
    Since,
    Stage,
    as_json,
    from_json,
    gone_on_with,
)
from data_pipeline.reading.order import SampleOrder

SIZES = {"web": 9_000, "books": 700, "code": 1_500, "poems": 40}
SEED = 21


def source(name, limit=None, dataset=None):
    return MixedSource(name, f"tokens of {name}", dataset or f"tokens of {name}", SIZES[name], limit)


def mix(*stages, limits=None):
    """A mix of the sources that some stage names; stages are (first counter, weights by name)."""
    names = list(dict.fromkeys(name for _, weights in stages for name in weights))
    sources = tuple(source(name, (limits or {}).get(name)) for name in names)
    return Mix(sources, tuple(Stage(first, tuple(w.get(name, 0.0) for name in names)) for first, w in stages))


def order(history, names=tuple(SIZES)):
    """The order of a run that reads the sources of these names, one after the other."""
    firsts = np.cumsum([0, *(SIZES[name] for name in names)]).tolist()
    pairs = list(zip(names, firsts[:-1], strict=True))
    drawn = [Drawn(f"tokens of {name}", first, SIZES[name], SEED + len(name)) for name, first in pairs]
    return MixedOrder(history, drawn, SEED), dict(pairs)


def check_epochs(samples, first_samples, names=tuple(SIZES)):
    """Asserts that every epoch of every source has each of its samples once, the last one at most once."""
    for name in names:
        first, size = first_samples[name], SIZES[name]
        mine = samples[(samples >= first) & (samples < first + size)]
        for start in range(0, len(mine), size):
            epoch = mine[start : start + size]
            assert len(np.unique(epoch)) == len(epoch), name


def test_three_changes_of_mix_and_of_ranks_and_a_kill_draw_every_sample_once_per_epoch():
    mixes = [
        mix((0, {"web": 8, "books": 1, "code": 1}), (9_000, {"web": 5, "books": 5})),
        mix((0, {"web": 3, "books": 1, "poems": 0.2})),
        mix((0, {"books": 1, "code": 4, "web": 0.001})),
        mix((0, {"web": 1, "books": 1, "code": 1, "poems": 1})),
    ]
    history, counter, seen, first_samples = (), 0, [], {}
    for number, (current, ranks) in enumerate(zip(mixes, (4, 1, 8, 2), strict=True)):
        history = gone_on_with(history, current, counter)
        history = from_json(json.loads(json.dumps(as_json(history))))
        drawn, first_samples = order(history)
        for step in range(63):
            counters = np.arange(counter, counter + 184)
            if number == 2 and step == 30:  # killed: what came after the last checkpoint is drawn again, the same
                again = [drawn(counters - 184 * back) for back in (2, 1)]
                assert all((a == b).all() for a, b in zip(again, seen[-2:], strict=True))
            seen.append(np.concatenate([drawn(part) for part in np.split(counters, ranks)]))
            counter += 184
    samples = np.concatenate(seen)
    check_epochs(samples, first_samples)
    per_source = {
        name: int(((samples >= first) & (samples < first + SIZES[name])).sum()) for name, first in first_samples.items()
    }
    assert order(history)[0].counts(counter) == per_source
    assert min(per_source[name] / SIZES[name] for name in ("books", "code", "poems")) > 1.5


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_changes_of_mix_repeat_and_lose_nothing(data):
    weights = st.dictionaries(st.sampled_from(list(SIZES)), st.floats(0.01, 100), min_size=1)
    history, counter = (), 0
    for _ in range(data.draw(st.integers(1, 4))):
        stages = [(0, data.draw(weights))]
        if data.draw(st.booleans()):
            stages.append((data.draw(st.integers(1, 4000)), data.draw(weights)))
        history = gone_on_with(history, mix(*stages), counter)
        counter += data.draw(st.integers(0, 1500))
    drawn, first_samples = order(history)
    samples = drawn(np.arange(counter + 1000))
    check_epochs(samples, first_samples)
    assert sum(stretch for stretch in order(history)[0].counts(counter).values()) <= counter


def test_a_mix_that_stays_is_no_change_and_one_before_the_first_sample_takes_its_place():
    first, second = mix((0, {"web": 1})), mix((0, {"books": 1}))
    history = gone_on_with((), first, 0)
    assert gone_on_with(history, first, 500) is history
    assert gone_on_with(history, second, 0) == (Since(0, second),)
    twice = gone_on_with(gone_on_with(history, second, 500), mix((0, {"code": 1})), 500)
    assert [entry.first for entry in twice] == [0, 500]


def test_a_stage_changes_the_shares_at_its_first_counter():
    drawn, first = order(gone_on_with((), mix((0, {"web": 1}), (1000, {"code": 1}), (2001, {"web": 1, "code": 1})), 0))
    is_code = (samples := drawn(np.arange(3001))) >= first["code"]
    is_code &= samples < first["code"] + SIZES["code"]
    assert not is_code[:1000].any() and is_code[1000:2001].all() and is_code[2001:].sum() == 500


def test_a_limit_ends_a_source_exactly_and_the_others_fill_its_place():
    history = gone_on_with((), mix((0, {"web": 1, "books": 1, "poems": 0.1}), limits={"books": 1000, "poems": 40}), 0)
    drawn, first = order(history)
    counts = drawn.counts(20_000)
    assert counts == {"web": 18_960, "books": 1000, "poems": 40}
    check_epochs(drawn(np.arange(20_000)), first)


def test_a_limit_counts_what_was_drawn_before_a_change_of_mix():
    history = gone_on_with((), mix((0, {"web": 1, "books": 1})), 0)
    history = gone_on_with(history, mix((0, {"web": 1, "books": 1}), limits={"books": 600}), 1000)
    assert order(history)[0].counts(5000) == {"web": 4400, "books": 600}


def test_a_mix_whose_sources_are_all_at_their_limits_says_after_how_many_samples():
    drawn, _ = order(gone_on_with((), mix((0, {"poems": 1, "books": 2}), limits={"poems": 30, "books": 50}), 0))
    assert drawn.end == 80
    assert len(drawn(np.arange(80))) == 80
    with pytest.raises(ValueError, match=r"every source has reached its limit after 80 samples"):
        drawn(np.arange(79, 81))


def test_one_source_alone_is_drawn_as_without_a_mix():
    drawn, _ = order(gone_on_with((), mix((0, {"poems": 3})), 0), ["poems"])
    counters = np.arange(500)
    assert (drawn(counters) == SampleOrder(SIZES["poems"], SEED + len("poems"))(counters)).all()


def test_a_dataset_drawn_as_a_whole_is_not_cut_otherwise_later():
    whole = Mix((MixedSource("all", "all tokens", "all tokens", 5000),), (Stage(0, (1.0,)),))
    parts = Mix((MixedSource("web", "some tokens", "all tokens", 5000),), (Stage(0, (1.0,)),))
    for before, after, words in ((whole, parts, "as a whole and cannot"), (parts, whole, "by its sources and cannot")):
        with pytest.raises(ValueError, match=words):
            gone_on_with(gone_on_with((), before, 0), after, 8)
    assert gone_on_with(gone_on_with((), whole, 0), parts, 0) == (Since(0, parts),)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda h: h[0].update(first=5),
        lambda h: h[1].update(first=0),
        lambda h: h[0]["mix"].pop("stages"),
        lambda h: h[0]["mix"]["stages"][0]["weights"].pop(),
    ],
)
def test_a_history_that_is_none_is_refused(spoil):
    history = as_json(gone_on_with(gone_on_with((), mix((0, {"web": 1})), 0), mix((0, {"books": 1})), 9))
    history = json.loads(json.dumps(history))
    spoil(history)
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json(history)
