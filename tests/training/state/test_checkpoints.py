"""The checkpoint's contract, with engines that are nothing but vectors, on ranks that are threads."""

import errno
import json
import os
import shutil
import stat

import pytest
import torch
from safetensors.torch import load_file

from common.mistakes import Mistake, is_mistake
from tests.training.state.ranks import ALONE, KINDS, SHAPES, VectorEngine, chosen, on_ranks, save_step, value_of
from training.distributed import World
from training.state import choosing, parts
from training.state.boxes import Box
from training.state.choosing import choose, examine, read_index
from training.state.folder import (
    checkpoints_dir,
    complete_checkpoints,
    delete_superseded,
    latest_checkpoint,
    mark_damaged,
    reading,
)
from training.state.identity import RunState
from training.state.loading import load, load_weights
from training.state.sums import dump_sums

PART = "part-00000.safetensors"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(parts, "WAITS", (0, 0))


def names(run_dir) -> list[str]:
    return sorted(path.name for path in checkpoints_dir(run_dir).iterdir())


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def reseal(folder) -> None:
    """Computes the list of checksums anew, as somebody would who changes a checkpoint on purpose."""
    sums = {path.name: choosing.checksum(path) for path in folder.iterdir() if path.name != "checksums.json"}
    (folder / "checksums.json").write_bytes(dump_sums(sums))


def test_what_is_saved_is_found_and_loaded(tmp_path):
    folder = save_step(tmp_path, 20)
    assert latest_checkpoint(tmp_path) == folder == tmp_path / "checkpoints" / "step-00000020"
    engine = VectorEngine()
    assert load(engine, chosen(tmp_path)) == RunState(20, 320, 10_000)
    assert [float(vector.min()) for vector in engine.vectors["weight"]] and chosen(tmp_path).unlisted == ()
    assert names(tmp_path) == ["latest", "step-00000020"]


@pytest.mark.parametrize(("stage", "size"), [(0, 1), (0, 3), (1, 2), (2, 4), (3, 1), (3, 4)])
@pytest.mark.parametrize(("new_stage", "new_size"), [(0, 2), (1, 1), (1, 4), (3, 3)])
def test_any_ranks_at_any_stage_take_over_from_any_others(tmp_path, stage, size, new_stage, new_size):
    on_ranks(size, lambda world: save_step(tmp_path, 10, world, VectorEngine(world, stage, gap=2)))

    def go_on(world) -> bool:
        engine = VectorEngine(world, new_stage, num_vectors=1)
        state = load(engine, chosen(tmp_path, world))
        return engine.is_right and state.step == 10

    assert on_ranks(new_size, go_on) == [True] * new_size
    weights = load_weights(latest_checkpoint(tmp_path))
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == SHAPES
    for name, weight in weights.items():
        expected = value_of("weight", Box.whole(name, weight.shape), torch.arange(weight.numel()))
        assert torch.equal(weight.flatten(), expected)


def test_parts_are_safetensors_files_with_one_tensor_for_each_kind_of_state(tmp_path):
    on_ranks(2, lambda world: save_step(tmp_path, 10, world))
    folder = latest_checkpoint(tmp_path)
    index = read_index(folder)
    for part in range(2):
        tensors = load_file(folder / f"part-{part:05d}.safetensors")
        assert {kind: tuple(tensor.shape) for kind, tensor in tensors.items()} == dict.fromkeys(
            KINDS, (index.size(part),)
        )


def test_a_checkpoint_holds_no_pickle(tmp_path):
    folder = save_step(tmp_path, 10)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    for path in folder.iterdir():
        assert path.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04")


def test_the_list_names_every_file_and_itself_cannot_be_changed(tmp_path):
    folder = save_step(tmp_path, 1)
    facts = json.loads((folder / "checksums.json").read_text())
    assert set(facts["files"]) == {path.name for path in folder.iterdir()} - {"checksums.json"}


def test_a_run_without_checkpoints_starts_at_its_beginning(tmp_path):
    assert choose(tmp_path, ALONE).checkpoint is None


def test_a_half_written_checkpoint_does_not_count_and_is_cleared_away(tmp_path):
    save_step(tmp_path, 10)
    (tmp_path / "checkpoints" / ".tmp-step-00000020" / "deep").mkdir(parents=True)
    assert chosen(tmp_path).folder.name == "step-00000010"
    save_step(tmp_path, 30)
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000030"]


def test_a_kill_between_the_rename_and_latest_loses_nothing_it_had(tmp_path):
    save_step(tmp_path, 10)
    save_step(tmp_path, 20)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000010\n")
    assert chosen(tmp_path).folder.name == "step-00000010"
    (tmp_path / "checkpoints" / "latest").unlink()
    assert chosen(tmp_path).folder.name == "step-00000020"


def test_a_checkpoint_that_latest_names_and_is_gone_is_said_and_no_run_begins_anew_over_it(tmp_path):
    for step in (10, 20):
        save_step(tmp_path, step)
    shutil.rmtree(checkpoints_dir(tmp_path) / "step-00000020")
    choice, why = choose(tmp_path, ALONE), "it names 'step-00000020', which is not there"
    assert (choice.folder.name, choice.damaged) == ("step-00000010", {"latest": [why]})
    shutil.rmtree(choice.folder)
    with pytest.raises(Mistake, match=f"latest: {why}.* restore one from a copy, or delete the folder"):
        choose(tmp_path, ALONE)


@pytest.mark.parametrize("name", ["state.json", "index.json", "checksums.json", PART])
@pytest.mark.parametrize("harm", ["flip", "cut", "delete", "empty", "folder"])
def test_any_harmed_file_is_noticed_and_the_one_before_serves(tmp_path, name, harm):
    save_step(tmp_path, 10)
    path = save_step(tmp_path, 20) / name
    if harm == "flip":
        flip(path)
    else:
        data = path.read_bytes()
        path.unlink()
        if harm == "folder":
            path.mkdir()
        elif harm != "delete":
            path.write_bytes(data[: len(data) // 2] if harm == "cut" else b"")
    choice = choose(tmp_path, ALONE)
    assert choice.checkpoint.folder.name == "step-00000010"
    assert name in choice.damaged["step-00000020"][0]


def test_harm_in_the_part_of_any_rank_is_noticed_by_all(tmp_path):
    for step in (10, 20):
        on_ranks(3, lambda world, step=step: save_step(tmp_path, step, world))
    flip(latest_checkpoint(tmp_path) / "part-00002.safetensors")
    for size in (1, 2, 5):
        choices = on_ranks(size, lambda world: choose(tmp_path, world))
        assert [choice.checkpoint.folder.name for choice in choices] == ["step-00000010"] * size
        assert {tuple(choice.damaged["step-00000020"]) for choice in choices} == {
            ("part-00002.safetensors has another checksum than when it was written",)
        }


@pytest.mark.parametrize("edit", ["emptied", "dropped", "changed", "added", "{}"])
def test_a_list_of_checksums_that_was_edited_is_damage(tmp_path, edit):
    save_step(tmp_path, 10)
    folder = save_step(tmp_path, 20)
    flip(folder / PART)
    path = folder / "checksums.json"
    facts = json.loads(path.read_text())
    if edit == "emptied":
        facts["files"] = {}
    elif edit == "dropped":
        del facts["files"][PART]
    elif edit == "changed":
        facts["files"][PART] = choosing.checksum(folder / PART)
    elif edit == "added":
        facts["files"]["part-00001.safetensors"] = facts["files"][PART]
    path.write_text("{}" if edit == "{}" else json.dumps(facts))
    choice = choose(tmp_path, ALONE)
    assert choice.checkpoint.folder.name == "step-00000010"
    assert "checksums.json cannot be read" in choice.damaged["step-00000020"][0]


@pytest.mark.parametrize("harm", ["a part less", "a part more"])
def test_a_list_that_is_not_of_exactly_the_files_that_the_index_implies_is_damage(tmp_path, harm):
    on_ranks(2, lambda world: save_step(tmp_path, 10, world))
    folder = latest_checkpoint(tmp_path)
    if harm == "a part less":
        (folder / "part-00001.safetensors").unlink()
    else:
        shutil.copy(folder / PART, folder / "part-00002.safetensors")
    reseal(folder)
    assert "is not that of a checkpoint" in examine(folder, ALONE)[0]


def test_files_that_are_not_listed_are_named_and_never_read(tmp_path):
    folder = save_step(tmp_path, 10)
    before = load_weights(folder)
    for name in ("old-" + PART, "part-00007.safetensors", "mp_rank_00_model_states.pt", "rng-00000.pt"):
        (folder / name).write_bytes(b"\x80\x04 not ours")
    for name in ("part-00001.safetensors", "zz-" + PART):
        shutil.copy(folder / PART, folder / name)
    (folder / "deep").mkdir()
    (folder / "deep" / "evil.pkl").write_bytes(b"x")
    found = chosen(tmp_path)
    assert set(found.unlisted) == {
        "old-" + PART,
        "zz-" + PART,
        "part-00001.safetensors",
        "part-00007.safetensors",
        "mp_rank_00_model_states.pt",
        "rng-00000.pt",
        "deep/evil.pkl",
    }
    after = load_weights(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_with_nothing_but_damage_refuses_to_start_over(tmp_path):
    (save_step(tmp_path, 10) / "state.json").unlink()
    with pytest.raises(
        ValueError, match=r"every checkpoint is damaged .*delete the folder to train from the beginning"
    ):
        choose(tmp_path, ALONE)


def test_saving_a_step_again_replaces_the_damaged_one(tmp_path):
    save_step(tmp_path, 10)
    (save_step(tmp_path, 20) / PART).write_bytes(b"")
    folder = save_step(tmp_path, 20)
    assert examine(folder, ALONE).folder == folder
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000020"]


def failing(monkeypatch, module, name, when, error, times=10**9):
    """Makes a function of a module raise an OSError for paths that `when` holds for, that many times."""
    real, left = getattr(module, name), [times]

    def harmed(*arguments, **keywords):
        if when(*arguments) and left[0]:
            left[0] -= 1
            raise OSError(error, os.strerror(error))
        return real(*arguments, **keywords)

    monkeypatch.setattr(module, name, harmed)


def test_an_error_that_only_one_rank_meets_is_an_error_of_all_and_no_reason_for_another_checkpoint(
    tmp_path, monkeypatch
):
    for step in (10, 20):
        on_ranks(2, lambda world, step=step: save_step(tmp_path, step, world))
    failing(monkeypatch, choosing, "checksum", lambda path: path.name == "part-00001.safetensors", errno.ESTALE)
    for error in on_ranks(2, lambda world: choose(tmp_path, world)):
        assert isinstance(error, OSError) and error.errno == errno.ESTALE
        assert not is_mistake(error)


@pytest.mark.parametrize("name", ["checksums.json", "state.json", "index.json"])
def test_what_one_rank_cannot_read_for_a_moment_leads_no_rank_elsewhere(tmp_path, monkeypatch, name):
    for step in (10, 20):
        on_ranks(2, lambda world, step=step: save_step(tmp_path, step, world))
    bad = tmp_path / "checkpoints" / "step-00000020" / name
    failing(monkeypatch, choosing.Path, "read_bytes", lambda path: path == bad, errno.ESTALE, times=1)
    choices = on_ranks(2, lambda world: choose(tmp_path, world))
    assert [choice.checkpoint.folder.name for choice in choices] == ["step-00000020"] * 2


def test_ranks_that_see_different_folders_never_go_on_from_different_steps(tmp_path):
    """As on a file system whose nodes see changes at different times."""
    for step in (10, 20):
        on_ranks(2, lambda world, step=step: save_step(tmp_path / "main", step, world))
    shutil.copytree(tmp_path / "main", tmp_path / "late")
    shutil.rmtree(tmp_path / "late" / "checkpoints" / "step-00000020")
    choices = on_ranks(2, lambda world: choose(tmp_path / ("main" if world.is_main else "late"), world))
    assert [choice.checkpoint.folder.name for choice in choices] == ["step-00000020"] * 2


def test_a_passing_error_while_loading_is_tried_again(tmp_path, monkeypatch):
    save_step(tmp_path, 10)
    engine = VectorEngine(num_vectors=1)
    failing(monkeypatch, parts.os, "preadv", lambda *_: True, errno.EIO, times=2)
    load(engine, chosen(tmp_path))
    assert engine.is_right


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_on_any_rank_leaves_the_checkpoint_before_it_and_no_trace(tmp_path, monkeypatch, rank):
    on_ranks(2, lambda world: save_step(tmp_path, 10, world))
    bad = f"part-{rank:05d}.safetensors"
    with monkeypatch.context() as patch:
        failing(patch, parts, "HashingWriter", lambda path: path.name == bad, errno.ENOSPC)
        from training.state import saving

        patch.setattr(saving, "write_part", parts.write_part)
        for error in on_ranks(2, lambda world: save_step(tmp_path, 20, world)):
            assert isinstance(error, OSError) and is_mistake(error)
            assert str(tmp_path) in str(error) and "could not be written (No space left on device)" in str(error)
    assert names(tmp_path) == ["latest", "step-00000010"]
    assert chosen(tmp_path).folder.name == "step-00000010"


@pytest.mark.parametrize("kind", ["plain file", "busy folder"])
def test_leftovers_of_any_kind_never_fail_a_save(tmp_path, kind, caplog, monkeypatch):
    save_step(tmp_path, 10)
    leftover = tmp_path / "checkpoints" / ".tmp-file"
    if kind == "plain file":
        leftover.write_text("x")
    else:
        leftover.mkdir()
        (leftover / ".nfs0001").write_text("held open by another node")
        real = os.unlink
        monkeypatch.setattr(
            os,
            "unlink",
            lambda path, **how: (
                (_ for _ in ()).throw(OSError(errno.EBUSY, "busy"))
                if str(path).endswith(".nfs0001")
                else real(path, **how)
            ),
        )
    save_step(tmp_path, 20)
    assert chosen(tmp_path).folder.name == "step-00000020"
    if kind == "busy folder":
        assert f"{leftover}: some of it is in use" in caplog.text
    else:
        assert not leftover.exists()


def test_a_folder_called_latest_is_moved_aside_and_named(tmp_path, caplog):
    (tmp_path / "checkpoints" / "latest").mkdir(parents=True)
    (tmp_path / "checkpoints" / "latest" / "mine").write_text("x")
    save_step(tmp_path, 10)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000010\n"
    (moved,) = (tmp_path / "checkpoints").glob("latest-*")
    assert (moved / "mine").read_text() == "x"
    assert moved.name in caplog.text


def test_a_file_in_the_place_of_all_checkpoints_is_no_new_run(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(ValueError, match="checkpoints: it is no folder"):
        choose(tmp_path, World.alone())


def test_retention_never_deletes_the_one_to_resume_from(tmp_path):
    for step in (10, 20, 30, 40):
        save_step(tmp_path, step)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000010\n")
    gone = delete_superseded(tmp_path, keep=1, keep_every_steps=None)
    assert [path.name for path in gone] == ["step-00000020", "step-00000030"]
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000040"]


def test_retention_counts_sound_checkpoints_only(tmp_path):
    for step in (10, 15, 20):
        save_step(tmp_path, step)
    mark_damaged(tmp_path / "checkpoints" / "step-00000020", ["part-00000.safetensors has another checksum"])
    assert delete_superseded(tmp_path, keep=2, keep_every_steps=None) == []
    save_step(tmp_path, 17)
    assert [path.name for path in delete_superseded(tmp_path, 2, None)] == ["step-00000010"]
    save_step(tmp_path, 20)
    assert not (tmp_path / "checkpoints" / "step-00000020" / "damaged.txt").exists()
    save_step(tmp_path, 25)
    assert [path.name for path in delete_superseded(tmp_path, 2, None)] == ["step-00000015", "step-00000017"]


def test_a_checkpoint_that_is_being_read_stays_until_nobody_reads(tmp_path):
    save_step(tmp_path, 10)
    with reading(tmp_path):
        for step in (20, 30):
            save_step(tmp_path, step)
            assert delete_superseded(tmp_path, keep=1, keep_every_steps=None) == []
        assert load_weights(tmp_path / "checkpoints" / "step-00000010")
    gone = delete_superseded(tmp_path, keep=1, keep_every_steps=None)
    assert [path.name for path in gone] == ["step-00000010", "step-00000020"]
    assert names(tmp_path) == ["latest", "step-00000030"]


def test_a_checkpoint_that_is_replaced_while_it_is_read_stays_the_one_that_was_opened(tmp_path):
    folder = save_step(tmp_path, 10)
    with reading(tmp_path), parts.Parts(folder, read_index(folder)) as opened:
        other = VectorEngine(num_vectors=1)
        other.vectors["weight"][0].zero_()
        save_step(tmp_path, 10, engine=other)
        assert load_weights(folder)["matrix"].sum() == 0
        values = torch.zeros(opened.index.size(0))
        opened.read(0, "weight", 0, values)
        assert values.any()
    save_step(tmp_path, 20)
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000020"]


def test_who_may_only_read_a_run_can_read_it(tmp_path):
    save_step(tmp_path, 10)
    (tmp_path / "readers").chmod(stat.S_IRUSR)
    with reading(tmp_path):
        assert load_weights(tmp_path / "checkpoints" / "step-00000010")


def test_a_folder_that_is_no_checkpoint_is_left_alone(tmp_path):
    save_step(tmp_path, 10)
    (tmp_path / "checkpoints" / "step-mine").mkdir()
    shutil.copytree(tmp_path / "checkpoints" / "step-00000010", tmp_path / "checkpoints" / "copy")
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-00000010"]


def test_a_part_that_is_not_as_long_as_the_index_says_is_damage_whatever_its_checksum(tmp_path):
    save_step(tmp_path, 10)
    folder = save_step(tmp_path, 20)
    (folder / PART).write_bytes((folder / PART).read_bytes()[:-4])
    reseal(folder)
    choice = choose(tmp_path, ALONE)
    assert choice.folder.name == "step-00000010"
    assert f"where {choosing.INDEX} says" in choice.damaged["step-00000020"][0]


def test_an_index_of_more_parts_than_there_are_is_damage_before_they_are_counted(tmp_path):
    folder = save_step(tmp_path, 10)
    facts = json.loads((folder / "index.json").read_text())
    for cut in facts["cuts"]:
        cut.update(parts=[0, 2**40], bounds="even")
    (folder / "index.json").write_text(json.dumps(facts))
    reseal(folder)
    with pytest.raises(Mistake, match=r"index\.json has 1099511627776 parts and checksums\.json 1"):
        choose(tmp_path, ALONE)


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        (("state", "step"), "20", "in its state, its step is text"),
        (("state", "samples_consumed"), None, "its samples_consumed is empty"),
        (("identity", "data"), 1.5, "its data is a number"),
        (("identity", "order"), [], "its order is a list"),
        (("identity",), {}, "it has no"),
    ],
)
def test_a_state_that_does_not_hold_what_it_should_is_damage_whatever_its_checksum(tmp_path, where, value, words):
    folder = save_step(tmp_path, 10)
    facts = json.loads((folder / "state.json").read_text())
    node = facts
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = value
    (folder / "state.json").write_text(json.dumps(facts))
    reseal(folder)
    with pytest.raises(Mistake, match=words):
        choose(tmp_path, ALONE)


@pytest.mark.parametrize("name", [PART, "index.json", "state.json", "checksums.json"])
def test_a_pipe_where_a_file_was_is_damage_and_no_reason_to_wait(tmp_path, name):
    save_step(tmp_path, 10)
    folder = save_step(tmp_path, 20)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    choice = choose(tmp_path, ALONE)
    assert choice.folder.name == "step-00000010"
    assert "a pipe or a device" in choice.damaged["step-00000020"][0]
