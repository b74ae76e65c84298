"""Whether a dataset was built with the same settings, however the paths of its sources are written."""

import pytest

from common.mistakes import Mistake
from data_pipeline.building.folder import _refuse

SETTINGS = {"data.min_characters": 1, "data.sources": [{"path": "a/*.jsonl"}, {"path": "s3://b/*"}], "tokenizer": "t"}


@pytest.fixture
def refuse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda **changes: _refuse(tmp_path, {**SETTINGS, **changes}, SETTINGS)


def test_a_source_is_the_same_by_its_absolute_path(refuse, tmp_path):
    refuse(**{"data.sources": [{"path": f"{tmp_path}/a/*.jsonl"}, {"path": "s3://b/*"}]})


@pytest.mark.parametrize("path", ["/elsewhere/a/*.jsonl", "a/*.json"])
def test_another_source_or_setting_is_refused_by_name(refuse, path):
    with pytest.raises(Mistake, match=r"built with data\.sources"):
        refuse(**{"data.sources": [{"path": path}, {"path": "s3://b/*"}]})
    with pytest.raises(Mistake, match=r"built with data\.min_characters 1, not 2"):
        refuse(**{"data.min_characters": 2})
    with pytest.raises(Mistake, match="other settings"):
        refuse(**{"data.new_key": None})


def test_a_setting_that_the_dataset_has_and_the_config_has_not_is_refused_by_name(tmp_path):
    filters = [{"name": "c4", "min_sentences": 5}]
    found = {**SETTINGS, "data.filters": filters, "source_files": "hash", "document_keys": {"keys-00000.npy": "hash"}}
    _refuse(tmp_path, {**SETTINGS, "data.filters": filters}, found)
    with pytest.raises(Mistake, match=r"built with data\.filters \[.*c4.*, not null"):
        _refuse(tmp_path, SETTINGS, found)
