"""Every copy but the first is found, however the tables are cut, and no file is opened tasks times ranges times."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.building import tables
from data_pipeline.building.copies import Copies
from data_pipeline.building.tables import Cut, cut


def found(copies: Copies, keys: list[np.ndarray]) -> list[list[int]]:
    """Copies in each task, by all passes."""
    for task, each in zip(copies.cut.all_tasks, keys, strict=True):
        copies.save_hashes(task, each)
        assert copies.num_hashed(task) == each.shape[1]
    for index in range(copies.cut.num_bundles):
        copies.tables.bundle(index)
    for index in range(copies.cut.num_ranges):
        copies.find(index)
    for index in range(copies.cut.num_bundles):
        copies.tables.hand_back(index)
    return [copies.of(task).tolist() for task in copies.cut.all_tasks]


def hashes(values: list[int], bits: str) -> np.ndarray:
    """Hashes of documents, all over their range, that are equal where the values are."""
    numbers = np.array(values, np.uint64) * np.uint64(2**64 // 13)
    zeros = np.zeros_like(numbers)
    return np.stack({"high": [numbers, zeros], "low": [zeros, numbers], "both": [numbers // 2, numbers]}[bits])


@given(
    tasks=st.lists(st.lists(st.integers(0, 12), max_size=20), min_size=1, max_size=9),
    bits=st.sampled_from(["high", "low", "both"]),
    num_ranges=st.integers(1, 5),
    bundle_size=st.integers(1, 4),
)
def test_every_copy_but_the_first_is_found(tasks, bits, num_ranges, bundle_size):
    expected, seen = [], set()
    for values in tasks:
        expected.append([number for number, value in enumerate(values) if value in seen or value in values[:number]])
        seen |= set(values)
    with tempfile.TemporaryDirectory() as folder:
        copies = Copies(Path(folder), Cut(len(tasks), num_ranges, bundle_size))
        assert found(copies, [hashes(values, bits) for values in tasks]) == expected


@settings(max_examples=12)
@given(
    there=st.lists(st.lists(st.integers(0, 12), max_size=20), min_size=1, max_size=4),
    added=st.lists(st.lists(st.integers(0, 12), max_size=20), min_size=1, max_size=4),
    bits=st.sampled_from(["high", "low", "both"]),
    ranges=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    bundle_size=st.integers(1, 3),
)
def test_tasks_added_to_those_that_are_there_give_the_copies_of_all_at_once(there, added, bits, ranges, bundle_size):
    def folder(name):
        (Path(parent) / name).mkdir()
        return Path(parent) / name

    keys = [hashes(values, bits) for values in [*there, *added]]
    with tempfile.TemporaryDirectory() as parent:
        whole = Copies(folder("whole"), Cut(len(keys), ranges[1]), keeps_keys=True)
        expected = found(whole, keys)
        first = Copies(folder("first"), Cut(len(there), ranges[0]), keeps_keys=True)
        found(first, keys[: len(there)])
        known = tuple(first.keys_path(index) for index in range(ranges[0]))
        cut_of_second = Cut(len(added), ranges[1], bundle_size, len(there))
        second = Copies(folder("second"), cut_of_second, keeps_keys=True, known=known)
        assert found(second, keys[len(there) :]) == expected[len(there) :]
        for index in range(ranges[1]):
            assert np.array_equal(np.load(second.keys_path(index)), np.load(whole.keys_path(index)))


def test_a_bundle_is_the_same_made_in_parts(tmp_path, monkeypatch):
    keys = [np.random.default_rng(task).integers(0, 2**64, (2, 40), np.uint64) for task in range(6)]
    made = []
    for name, documents in (("whole", 10**6), ("parts", 7)):
        monkeypatch.setattr(tables, "RANGE_ROWS", documents)
        (tmp_path / name).mkdir()
        found(Copies(tmp_path / name, Cut(6, 3, 3)), keys)
        made.append([np.load(path) for path in sorted((tmp_path / name).glob("bundle-*.npy"))])
    assert len(made[0]) == 2
    assert all(np.array_equal(one, other) and len(one) == 120 for one, other in zip(*made, strict=True))


@pytest.mark.parametrize("num_tasks", [100, 400])
def test_files_are_opened_far_less_often_than_tasks_times_ranges(tmp_path, monkeypatch, num_tasks):
    opened = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda path, **options: (opened.append(path), load(path, **options))[1])
    several = cut(num_tasks, num_tasks * 20_000 * 5)
    assert several == Cut(num_tasks, num_tasks // 20, int(num_tasks**0.5))
    assert found(Copies(tmp_path, several), [hashes([task % 13], "low") for task in range(num_tasks)])[13:] == [[0]] * (
        num_tasks - 13
    )
    assert len(opened) <= 3 * num_tasks + 2 * several.num_ranges * several.bundle_size


def test_few_tasks_are_not_bundled():
    assert cut(tables.FEW_TASKS, 10) == Cut(tables.FEW_TASKS)
    assert cut(tables.FEW_TASKS + 1, 2 * tables.RANGE_ROWS + 1) == Cut(tables.FEW_TASKS + 1, 3, 9)
