"""Ray on a machine so busy that it gives itself up while it starts."""

import pytest
import ray

from data_pipeline.building import build
from data_pipeline.config import DataConfig


@pytest.fixture
def starts(monkeypatch):
    """Folders that Ray was started in; it fails with each of `words` in turn, then starts."""
    folders: list[str] = []
    words: list[str] = []

    def init(_temp_dir, **_):
        folders.append(_temp_dir)
        if words:
            raise Exception(words.pop(0))

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return folders, words


def test_it_is_started_again_in_a_folder_of_its_own(starts):
    folders, words = starts
    words += ["The current node timed out during startup. This could happen because"] * 2
    with build._connected(DataConfig(path="unused")):
        pass
    assert len(set(folders)) == 3


@pytest.mark.parametrize("word", ["timed out during startup", "no room"])
def test_it_is_not_started_for_ever_nor_again_for_another_reason(starts, word):
    folders, words = starts
    words += [word] * 9
    with pytest.raises(Exception, match=word), build._connected(DataConfig(path="unused")):
        pass
    assert len(folders) == (build.STARTS if "timed out" in word else 1)
