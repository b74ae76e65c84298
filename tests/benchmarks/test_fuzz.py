"""Some hundred spoilt files, the same ones each time; the rest are in `python -m benchmarks.fuzz`."""

import random

import pytest

from benchmarks import fuzz
from benchmarks.fuzz_kinds import ALL
from benchmarks.mutations import FORMS, PLACES, mutated
from common.mistakes import Mistake


def alone(action):
    """What an action returns in a process of its own."""
    return fuzz.isolated([action])[0]


LINE = b'{"step": 3, "loss": 2.5, "names": ["a", "b"]}\n'


def test_spoilt_files_of_every_kind_are_read_right_or_refused_in_one_sentence(tmp_path):
    verdicts = fuzz.campaign(ALL, 260, seed=7, jobs=2, work=tmp_path)
    assert len(verdicts) == 260
    assert {verdict.kind for verdict in verdicts} == {kind.name for kind in ALL}
    assert {verdict.outcome for verdict in verdicts} == {fuzz.READ, fuzz.REFUSED}, [
        (verdict, fuzz.reproduction(verdict, 7)) for verdict in verdicts if verdict.outcome == fuzz.WRONG
    ]


@pytest.mark.parametrize("form", [*FORMS, "binary"])
def test_the_same_numbers_spoil_a_file_in_the_same_way(form, tmp_path):
    spoilt = []
    for number in [*range(200), *range(200)]:
        mutation = mutated(LINE, form, random.Random(number))
        if any(place in mutation.words for place in PLACES):
            spoilt.append(mutation.words)
            continue
        mutation.put(tmp_path / "file")
        spoilt.append((mutation.words, (tmp_path / "file").read_bytes()))
    assert spoilt[:200] == spoilt[200:]
    assert sum(data[1] != LINE for data in spoilt[:200] if isinstance(data, tuple)) > 120


@pytest.mark.parametrize(
    ("action", "outcome", "words"),
    [
        (lambda: (fuzz.READ, ""), fuzz.READ, ""),
        (lambda: 1 / 0, fuzz.WRONG, "ended without a word"),
        (lambda: fuzz.signal.pause(), fuzz.WRONG, "no end within"),
        (lambda: fuzz.os.abort(), fuzz.WRONG, "Aborted"),
        (lambda: (fuzz.READ, str(len(bytes(fuzz.MEMORY)))), fuzz.WRONG, "ended without a word"),
    ],
)
def test_a_case_that_breaks_hangs_dies_or_swells_is_wrong(action, outcome, words, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    before, (found, said), after = fuzz.isolated([lambda: (fuzz.READ, "a"), action, lambda: (fuzz.READ, "b")])
    assert found == outcome and words in said
    assert (before, after) == ((fuzz.READ, "a"), (fuzz.READ, "b"))


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Mistake("run.yaml: no such key"), fuzz.REFUSED),
        (FileNotFoundError(2, "No such file", "x"), fuzz.REFUSED),
        (Mistake(""), fuzz.WRONG),
        (ValueError("of a library"), fuzz.WRONG),
        (AssertionError("data that nobody wrote"), fuzz.WRONG),
    ],
)
def test_only_what_a_user_can_mend_counts_as_refused(error, outcome, tmp_path):
    def read(folder):
        raise error

    kind = fuzz.dataclasses.replace(ALL[0], read=read)
    (tmp_path / "case").mkdir()
    assert alone(lambda: fuzz._read(kind, tmp_path / "case", None))[0] == outcome


def test_data_that_is_not_what_was_written_is_wrong(tmp_path):
    (shard,) = (kind for kind in ALL if kind.name == "shard")
    (tmp_path / "case").mkdir()
    kind = fuzz.dataclasses.replace(shard, read=lambda folder: {"documents": 1})
    assert alone(lambda: fuzz._read(kind, tmp_path / "case", {"documents": 1})) == (fuzz.READ, "")
    outcome, words = alone(lambda: fuzz._read(kind, tmp_path / "case", {"documents": 2}))
    assert (outcome, words) == (fuzz.WRONG, "what was read is not what was written")


def test_a_command_that_ends_otherwise_than_in_a_sentence_is_wrong(tmp_path, monkeypatch):
    (tmp_path / "case").mkdir()
    assert alone(lambda: fuzz._run(("config", "show", "nowhere.yaml"), tmp_path / "case"))[0] == fuzz.READ

    def breaks() -> None:
        raise KeyError("x")

    monkeypatch.setattr(fuzz.launcher.cli, "main", breaks)
    outcome, words = alone(lambda: fuzz._run(("status",), tmp_path / "case"))
    assert outcome == fuzz.WRONG and "KeyError" in words
