"""Shingles, sketches, comparisons and choices do what plain code does."""

import random
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.building.near import shingles as shingles_module
from data_pipeline.building.near.pairs import PARTNERS, candidate_pairs, most_shared
from data_pipeline.building.near.report import Cluster, alarms, largest_clusters, merged
from data_pipeline.building.near.sets import similarities
from data_pipeline.building.near.settling import KEPT, REMOVED, Settled, settle, undecided
from data_pipeline.building.near.shingles import shingle_sets, shingles
from data_pipeline.building.near.sketches import band_keys, bands_for
from data_pipeline.building.tables import Cut
from data_pipeline.config import DataConfig
from data_pipeline.manifest import SourceCounts
from tests.data_pipeline.building.near.finding import deduplicated, plain_shingles, similarity

WORDS = st.sampled_from(
    ["a", "B", "ab", "été", "0", "x_1", "中", "文字", "한국", "का", "—", ",", "\n", "\u3000", "\U0001f600"]
)


@given(texts=st.lists(st.lists(WORDS, max_size=30).map(" ".join), max_size=6))
def test_texts_have_as_many_shingles_as_plain_code_finds_and_equal_ones_where_it_does(texts):
    texts = [text.replace("_", "") for text in texts]  # which plain_shingles takes for a blank
    sets = shingle_sets(texts)
    for text, found in zip(texts, sets, strict=True):
        assert len(found) == len(plain_shingles(text).difference([()]))
        assert found.dtype == np.uint32 and (np.diff(found.astype(np.int64)) > 0).all()
        for other, its in zip(texts, sets, strict=True):
            assert len(np.intersect1d(found, its)) == len(plain_shingles(text) & plain_shingles(other))


def test_a_text_has_the_same_shingles_alone_among_others_and_in_either_width(monkeypatch):
    text = "The quick brown fox jumps over the lazy dog and runs away"
    [alone] = shingle_sets([text])
    assert len(alone) == 8
    for others in (["one two"], ["什么都没有"], [""]):
        assert np.array_equal(shingle_sets([*others, text.upper(), *others])[1], alone)
    [wide] = shingle_sets([f"{text} 漢"])
    assert set(alone.tolist()) < set(wide.tolist())
    [spaced] = shingle_sets([text.replace(" ", ",\n ")])
    assert np.array_equal(spaced, alone)


def test_long_texts_are_cut_and_lose_few_shingles(monkeypatch):
    drawn = random.Random(3)
    text = " ".join("".join(drawn.choices(string.ascii_lowercase, k=6)) for _ in range(1000))
    [whole] = shingle_sets([text])
    monkeypatch.setattr(shingles_module, "PIECE_CHARACTERS", 1000)
    [cut] = shingle_sets([text])
    assert len(np.intersect1d(whole, cut)) >= len(whole) - 7 * 5


@pytest.mark.parametrize("language", ["th", "ja", "zh"])
def test_scripts_without_blanks_are_compared_by_characters(tmp_path, language):
    first, last = {"th": (0x0E01, 0x0E2E), "ja": (0x3041, 0x3096), "zh": (0x4E00, 0x9000)}[language]
    drawn = random.Random(2)
    texts = ["".join(chr(drawn.randint(first, last)) for _ in range(300)) for _ in range(6)]
    copies = [text[:100] + "x" + text[101:] for text in texts]
    left, _ = deduplicated(tmp_path, [texts + copies])
    assert left == texts


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.9])
def test_bands_are_shared_as_often_as_the_formula_says(share):
    generator = np.random.default_rng(0)
    bands = bands_for(0.8)
    found = 0
    for _ in range(300):
        numbers = generator.choice(2**32, 400, replace=False).astype(np.uint32)
        both = round(400 * share)
        alone = (400 - both) // 2
        one, other = numbers[: both + alone], np.concatenate([numbers[:both], numbers[both + alone :]])
        starts = np.array([0, len(one), len(one) + len(other)])
        keys = band_keys(np.concatenate([one, other]), starts, bands)
        found += bool((keys[0] == keys[1]).any())
    expected = 1 - (1 - share**bands.rows) ** bands.num_bands
    assert abs(found / 300 - expected) < 4 * (max(expected * (1 - expected), 0.003) / 300) ** 0.5


@given(sets=st.lists(st.sets(st.integers(0, 40), min_size=1), min_size=2, max_size=6))
def test_similarity_is_what_both_have_over_what_either_has(sets):
    arrays = [np.array(sorted(one), np.uint32) for one in sets]
    expected = [len(sets[0] & one) / len(sets[0] | one) for one in sets[1:]]
    assert similarities(arrays[0], arrays[1:]).tolist() == expected


# ---- pairs and choices


@given(keys=st.lists(st.integers(0, 5), max_size=30))
def test_pairs_are_within_buckets_and_all_of_them_in_small_ones(keys):
    rows = np.array([(key, 0, place) for place, key in enumerate(keys)], np.uint64).reshape(-1, 3)
    rows = rows[np.lexsort(rows.T[::-1])]
    pairs = {(one, other) for one, other in candidate_pairs(rows).tolist() if one != other}
    buckets = [[place for place, key in enumerate(keys) if key == which] for which in range(6)]
    whole = {(one, other) for bucket in buckets for one in bucket for other in bucket if other < one}
    assert pairs <= whole and len(pairs) <= 4 * len(keys)
    small = {pair for pair in whole if len(buckets[keys[pair[0]]]) <= 5}
    assert small <= pairs


def test_of_many_partners_those_with_most_bands_in_common_are_kept():
    pairs = np.array([(9, 9)] + [(9, other) for other in range(7) for _ in range(other + 1)], np.uint64)
    kept = most_shared(pairs[np.lexsort(pairs.T[::-1])]).tolist()
    assert kept == [[9, other] for other in range(7 - PARTNERS, 7)] + [[9, 9]]


PAIRS = st.sets(st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(lambda pair: pair[0] != pair[1]), max_size=80)


def greedily(pairs):
    """Kept documents from the best to the worst, one after another."""
    removed = set()
    for document in sorted({one for one, _ in pairs}):
        if any(one == document and other not in removed for one, other in pairs):
            removed.add(document)
    return removed


@given(pairs=PAIRS, num_tasks=st.integers(1, 9), bundle_size=st.integers(1, 4))
def test_bundles_choose_what_one_choosing_from_best_to_worst_does(tmp_path_factory, pairs, num_tasks, bundle_size):
    pairs = {(max(pair), min(pair)) for pair in pairs}
    place = {number: number * num_tasks // 41 << 32 | number for number in range(41)}
    rows = np.array([(place[one], place[other], 0) for one, other in sorted(pairs)], np.uint64).reshape(-1, 3)
    rows[:, 2] = np.full(len(rows), 0.9).view(np.uint64)
    settled = Settled(tmp_path_factory.mktemp("settled"), Cut(num_tasks, 1, bundle_size))
    for round_number in range(50):
        left = 0
        for part in range(settled.num_parts):
            tasks = settled.tasks(part)
            of_part = (rows[:, 0] >> np.uint64(32) >= tasks.start) & (rows[:, 0] >> np.uint64(32) < tasks.stop)
            left += settled.settle(round_number, part, rows[of_part])
        if not left:
            break
    found = np.concatenate([settled.removed_of(round_number, task) for task in range(num_tasks)])
    removed = {number for number in range(41) if place[number] in found[:, 0].tolist()}
    assert removed == greedily(pairs)
    kept = {place[number] for number in range(41)} - set(found[:, 0].tolist())
    assert set(found[:, 1].tolist()) <= kept


def test_the_most_similar_of_those_that_stay_is_named():
    rows = np.array([(5, 1, 0), (5, 2, 0), (5, 3, 0)], np.uint64)
    rows[:, 2] = np.array([0.85, 0.95, 0.9]).view(np.uint64)
    [[document, state, kept, similar]] = settle(rows, undecided(rows), np.full(3, KEPT, np.uint64), np.zeros(3, bool))
    assert (document, state, kept, np.uint64(similar).view(np.float64)) == (5, REMOVED, 2, 0.95)


def test_revisions_that_drift_away_are_each_compared_with_what_stays(tmp_path):
    drawn = random.Random(1)
    words = ["".join(drawn.choices(string.ascii_lowercase, k=7)) for _ in range(2000)]
    texts = [" ".join(words[30 * number : 30 * number + 500]) for number in range(12)]
    left, _ = deduplicated(tmp_path, [texts], shard_megabytes=0.002)
    assert 3 <= len(left) < 12 and left[0] == texts[0]
    for text in set(texts) - set(left):
        assert max(similarity(text, other) for other in left) >= 0.8


# ---- what is told


def test_the_largest_clusters_of_all_bundles_are_put_together():
    def removed(kept, numbers):
        bits = int(np.float64(0.9).view(np.uint64))
        return np.array([(number, kept, bits) for number in numbers], np.uint64)

    one = largest_clusters(np.concatenate([removed(1, range(10, 15)), removed(2, [20])]))
    other = largest_clusters(removed(2, range(30, 36)))
    assert one == [Cluster(1, 5, [(10, 0.9), (11, 0.9), (12, 0.9)]), Cluster(2, 1, [(20, 0.9)])]
    assert merged(one + other) == [Cluster(2, 7, [(20, 0.9), (30, 0.9), (31, 0.9)]), one[0]]
    assert largest_clusters(np.zeros((0, 3), np.uint64)) == []


def test_a_source_is_told_of_above_the_share_only():
    config = DataConfig(
        path="d", sources=[{"path": "a"}, {"path": "b"}], deduplicate={"documents": "near", "alarm_share": 0.5}
    )
    counts = [
        SourceCounts(name=name, counts={"documents_kept": kept, "dropped_near_copy": 10 - kept, "dropped_repeated": 90})
        for name, kept in (("a", 5), ("b", 4))
    ]
    assert [warning.partition(":")[0] for warning in alarms(config, counts)] == ["data.sources[1]"]
    assert alarms(config, []) == []


def test_a_word_is_short_for_a_section_and_old_fingerprints_hold():
    written = [
        DataConfig(path="d", deduplicate=value).deduplicate.decisive for value in ("exact", {"documents": "near"})
    ]
    assert written == ["exact", "near"]
    assert DataConfig(path="d").model_dump()["deduplicate"] == "exact"
    section = {"documents": "near", "lines": "exact", "similarity": 0.7, "alarm_share": 0.1}
    config = DataConfig(path="d", deduplicate=section)
    assert DataConfig.model_validate_json(config.model_dump_json()) == config
    assert config.deduplicate.decisive == {"documents": "near", "lines": "exact", "similarity": 0.7}
    with pytest.raises(ValueError, match=r"similarity: it is used with documents: near only, and documents is exact"):
        DataConfig(path="d", deduplicate={"similarity": 0.7})


def test_texts_without_a_word_have_no_shingle():
    hashes, starts = shingles(["", "...", "\n\n", "a"])
    assert (len(hashes), starts.tolist()) == (1, [0, 0, 0, 0, 1])
