"""What interrupted saves leave, in every form: cleared away, or one answer on all ranks and no rank that waits."""

import errno
import os
from pathlib import Path

import pytest

from common.mistakes import is_mistake
from tests.training.state.ranks import chosen, on_ranks, save_step
from training.distributed import World
from training.lock import sole_writer
from training.state.folder import checkpoints_dir


def planted(run_dir: Path, form: str) -> Path:
    """A leftover of this form, where the newest complete checkpoint is that of step 10."""
    home = checkpoints_dir(run_dir)
    path = home / {
        "half a rename": ".tmp-old-7.0-step-00000020-abcd",
        "a file where the checkpoint should be": "step-00000020",
        "a link where the checkpoint should be": "step-00000020",
    }.get(form, ".tmp-7.0-step-00000020-abcd")
    if form == "folder":
        (path / "deep").mkdir(parents=True)
        (path / "part-00000.safetensors").write_bytes(b"half")
    elif form in ("file", "a file where the checkpoint should be"):
        path.write_text("x")
    elif form in ("link", "a link where the checkpoint should be"):
        path.symlink_to(home / "nowhere")
    elif form == "half a rename":
        save_step(run_dir, 20).rename(path)  # the new one had not got its name yet
        (home / ".tmp-7.0-step-00000020-beef").mkdir()
    return path


FORMS = [
    "folder",
    "file",
    "link",
    "half a rename",
    "a file where the checkpoint should be",
    "a link where the checkpoint should be",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("restarted", [True, False])
def test_a_leftover_of_any_form_is_cleared_away_and_all_ranks_go_on(tmp_path, form, restarted):
    on_ranks(2, lambda world: save_step(tmp_path, 10, world))
    planted(tmp_path, form)

    def go_on(world: World) -> tuple[int, str]:
        if restarted:
            with sole_writer(tmp_path, world):
                found = chosen(tmp_path, world).state.step
        else:
            found = chosen(tmp_path, world).state.step
        return found, save_step(tmp_path, 20, world).name

    assert on_ranks(2, go_on) == [(10, "step-00000020")] * 2
    assert sorted(path.name for path in checkpoints_dir(tmp_path).iterdir()) == [
        "latest",
        "step-00000010",
        "step-00000020",
    ]
    assert chosen(tmp_path).state.step == 20


def refuse(monkeypatch, name: str, error: int, when) -> None:
    """Makes a call of Path fail for the paths that `when` holds for."""
    real = getattr(Path, name)

    def call(self, *arguments, **how):
        if when(self):
            raise OSError(error, os.strerror(error), str(self))
        return real(self, *arguments, **how)

    monkeypatch.setattr(Path, name, call)


@pytest.mark.parametrize("error", [errno.EPERM, errno.EACCES, errno.EBUSY])
def test_a_leftover_that_nobody_may_touch_is_named_and_stops_nobody(tmp_path, monkeypatch, caplog, error):
    on_ranks(2, lambda world: save_step(tmp_path, 10, world))
    leftover = planted(tmp_path, "folder")
    refuse(monkeypatch, "rename", error, lambda path: path == leftover)
    rmdir = os.rmdir

    def refuse_rmdir(path, **how):
        if Path(path).name == leftover.name:
            raise OSError(error, os.strerror(error))
        return rmdir(path, **how)

    monkeypatch.setattr(os, "rmdir", refuse_rmdir)

    def go_on(world: World) -> str:
        with sole_writer(tmp_path, world):
            return save_step(tmp_path, 20, world).name

    assert on_ranks(2, go_on) == ["step-00000020"] * 2
    assert f"{leftover}: what a save has left cannot be moved away" in caplog.text
    assert f"{leftover}: some of it is in use and cannot be deleted yet" in caplog.text


def test_a_file_system_that_gives_no_answer_about_a_leftover_is_an_error_of_all_ranks(tmp_path, monkeypatch):
    on_ranks(2, lambda world: save_step(tmp_path, 10, world))
    leftover = planted(tmp_path, "folder")
    refuse(monkeypatch, "rename", errno.EIO, lambda path: path == leftover)

    def begin(world: World) -> None:
        with sole_writer(tmp_path, world):
            raise AssertionError("the run was taken")

    for error in on_ranks(2, begin):
        assert isinstance(error, OSError) and error.errno == errno.EIO and not is_mistake(error)


@pytest.mark.parametrize("form", ["a file in the place of all", "a folder in the place of the readers' lock"])
def test_what_cannot_be_cleared_away_is_one_sentence_on_all_ranks(tmp_path, form):
    if form == "a file in the place of all":
        checkpoints_dir(tmp_path).write_text("mine")
    else:
        (tmp_path / "readers").mkdir()
    first, second = on_ranks(2, lambda world: save_step(tmp_path, 20, world))
    assert isinstance(first, OSError) and str(first) == str(second) and is_mistake(first)
    assert f"{checkpoints_dir(tmp_path)}: the checkpoint could not be written" in str(first)


def test_a_leftover_that_only_the_first_rank_can_see_keeps_no_other_waiting(tmp_path, monkeypatch):
    """As where the folder is on no shared file system: rank 0 finds a file in the place of what it is to make."""
    real = Path.mkdir

    def mkdir(self, *arguments, **how):
        if self.name.startswith(".tmp-"):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))
        return real(self, *arguments, **how)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    for error in on_ranks(3, lambda world: save_step(tmp_path, 20, world)):
        assert isinstance(error, OSError) and error.errno == errno.EEXIST
