"""What stages give back, and how they fail."""

import dataclasses
import errno
import os
from pathlib import Path

import pytest

from common.mistakes import Mistake, sentence
from data_pipeline.config import SourceConfig, TokenizerConfig
from launcher import stages, views
from launcher.config import check_config
from launcher.console import StageProgress
from tests.launcher.test_config import MINIMAL


@pytest.fixture
def config(tmp_path):
    tokenizer, sources = {"path": f"{tmp_path}/tok", "vocab_size": 400}, [{"path": f"{tmp_path}/a.jsonl"}]
    return check_config({**MINIMAL, "tokenizer": tokenizer, "data": {"path": "d", "sources": sources}}, "test")


def test_a_tokenizer_that_is_there_is_told_as_reused(tokenizer_config, corpus_file, config):
    data = config.data.model_copy(update={"sources": [SourceConfig(path=str(corpus_file))]})
    config = config.model_copy(update={"tokenizer": TokenizerConfig(**tokenizer_config.model_dump()), "data": data})
    found = stages.train_tokenizer(config, StageProgress("tokenizer"))
    assert (found.reused, found.vocab_size) == (True, 2000)
    assert views.tokenizer(found) == f"reused {tokenizer_config.path}, 2,000 pieces"


def test_a_disk_without_room_is_told_with_the_folder_that_a_stage_writes(config, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("data_pipeline.tokenizer.train_tokenizer", fail)
    with pytest.raises(OSError, match="No space") as caught:
        stages.train_tokenizer(config, StageProgress("tokenizer"))
    assert sentence(caught.value) == f"{config.tokenizer.path}: No space left on device"


def test_a_tokenizer_that_is_gone_is_not_asked_to_be_trained_anew(config, tmp_path):
    with pytest.raises(
        Mistake, match=r"tok, which .*step-00000002 was trained with, is gone; put it back, or say"
    ) as told:
        stages.tokenizer_of(config, tmp_path / "step-00000002")
    assert "tokenizer train" not in str(told.value)


def test_damaged_checkpoints_are_named(tmp_path):
    newest = stages.NewestCheckpoint(tmp_path, {"step-00000004": ["a is gone", "b too"]})
    assert views.passed_over(newest) == ["checkpoint step-00000004 is damaged and was passed over: a is gone; b too"]


def test_what_a_dataset_warns_of_stands_below_what_it_is():
    built = stages.BuiltData(Path("d"), 2, 10, 0, {"near_copy": 3}, False, ("data.sources[0]: 3 of the 5 ...",))
    expected = "2 documents, 10 training and 0 held-out tokens"
    assert views.data(built) == f"{expected} in d; dropped: 3 near copy\nwarning: data.sources[0]: 3 of the 5 ..."
    again = dataclasses.replace(built, reused=True)
    assert views.data(again) == f"reused d: {expected}\nwarning: data.sources[0]: 3 of the 5 ..."
