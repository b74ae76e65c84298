"""Checkpoints on nodes' own disks, on ranks that are threads and play several nodes."""

import dataclasses
import errno
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from common.mistakes import Mistake, is_mistake
from tests.training.runs import events_of, tiny_config
from tests.training.stand_ins import moment_of, run_in
from tests.training.state.ranks import IDENTITY, VectorEngine, chosen, on_ranks, save_step
from training.config import CheckpointConfig
from training.distributed import World
from training.local import partners as partners_module
from training.local.folder import LocalFolder, located
from training.local.nodes import Nodes
from training.local.partners import Partners
from training.local.promoting import promote
from training.local.saving import LocalSaves
from training.parts.saving import Saving
from training.state.choosing import examine
from training.state.folder import checkpoints_dir
from training.state.identity import RunState
from training.state.loading import load

MINUTE = timedelta(minutes=1)


def local_folder(home: Path, world: World, each: int = 1) -> LocalFolder:
    """The folder of a rank's node, where `each` ranks lie on one."""
    path = home / f"node-{world.rank // each}"
    path.mkdir(parents=True, exist_ok=True)
    return LocalFolder(path, Nodes(world.size, each), world.rank % each == 0)


def save_locally(home: Path, *steps: int, size: int = 2, each: int = 1) -> list:
    """Saves these steps on each node; what came of it on each rank."""

    def save(world: World) -> list[Path]:
        apart = world.apart("saver", MINUTE)
        local = local_folder(home, world, each)
        saves = LocalSaves(local, Partners.connect(local.nodes, apart, MINUTE, 1.0), apart, home / "run")
        try:
            identity = dataclasses.replace(IDENTITY, world_size=size)
            return [saves.commit(VectorEngine(world).snapshot(), RunState(step), identity) for step in steps]  # type: ignore
        finally:
            saves.close()
            apart.plane.close()

    return on_ranks(size, save)


def promoted(home: Path, size: int = 2, each: int = 1, newest: int = -1) -> list[int | None]:
    """The step that was promoted, as each rank saw it."""

    def go(world: World) -> int | None:
        found = promote(local_folder(home, world, each), home / "run", world, newest, lambda state: False)
        return found and found[0]

    return on_ranks(size, go)


def held(home: Path, node: int, step: int) -> set[str]:
    folder = home / f"node-{node}" / f"step-{step:08d}"
    return {path.name for path in folder.glob("part-*")}


def part(home: Path, node: int, step: int, number: int) -> Path:
    return home / f"node-{node}" / f"step-{step:08d}" / f"part-{number:05d}.safetensors"


def loads(home: Path, size: int) -> bool:
    """Whether ranks of any number read what was saved out of the run's newest checkpoint."""

    def read(world: World) -> bool:
        engine = VectorEngine(world, num_vectors=1)
        load(engine, chosen(home / "run", world))  # type: ignore[arg-type]
        return engine.is_right

    return all(value is True for value in on_ranks(size, read))


def test_each_node_holds_its_own_parts_and_copies_of_those_of_the_node_before(tmp_path):
    save_locally(tmp_path, 5, size=6, each=2)
    numbers = {0: (0, 1, 4, 5), 1: (0, 1, 2, 3), 2: (2, 3, 4, 5)}
    for node, parts in numbers.items():
        assert held(tmp_path, node, 5) == {f"part-{number:05d}.safetensors" for number in parts}
        small = {path.name for path in (tmp_path / f"node-{node}" / "step-00000005").glob("*.json")}
        assert small == {"state.json", "index.json", "checksums.json"}


def test_the_newest_two_are_kept_and_nothing_else(tmp_path):
    save_locally(tmp_path, 5, 10, 15, 10)
    for node in (0, 1):
        assert sorted(path.name for path in (tmp_path / f"node-{node}").iterdir()) == ["step-00000010", "step-00000015"]


@pytest.mark.parametrize(("size", "each", "lost"), [(2, 1, 0), (2, 1, 1), (4, 2, 1), (6, 2, 0), (3, 1, 2)])
def test_with_any_one_node_lost_all_of_it_is_there_and_becomes_a_shared_one(tmp_path, size, each, lost):
    save_locally(tmp_path, 5, 10, size=size, each=each)
    shutil.rmtree(tmp_path / f"node-{lost}")
    assert promoted(tmp_path, size, each) == [10] * size
    assert sorted(path.name for path in checkpoints_dir(tmp_path / "run").iterdir()) == ["latest", "step-00000010"]
    assert loads(tmp_path, 3)
    assert promoted(tmp_path, size, each, newest=10) == [None] * size


def test_another_number_of_ranks_and_nodes_promotes_what_it_finds(tmp_path):
    save_locally(tmp_path, 5, size=4, each=2)
    assert promoted(tmp_path, 2, 1) == [5, 5]
    assert loads(tmp_path, 2)


@pytest.mark.parametrize("harm", ["cut", "deleted"])
def test_a_harmed_part_is_read_from_its_copy_and_without_one_the_checkpoint_before_serves(tmp_path, harm):
    save_locally(tmp_path, 5, 10)
    shutil.copytree(tmp_path, tmp_path / "again", ignore=shutil.ignore_patterns("again"))
    for node in (0, 1):
        bad = part(tmp_path, node, 10, 1)
        if harm == "cut":
            bad.write_bytes(bad.read_bytes()[:-1])
        else:
            bad.unlink()
        assert promoted(tmp_path) == [[10, 10], [5, 5]][node]
        assert loads(tmp_path, 2)
        shutil.rmtree(tmp_path / "run")


def test_a_checkpoint_that_no_two_nodes_hold_all_of_is_left_and_the_shared_one_serves(tmp_path):
    on_ranks(3, lambda world: save_step(tmp_path / "run", 3, world))
    save_locally(tmp_path, 5, size=3)
    for node in (0, 1):
        shutil.rmtree(tmp_path / f"node-{node}")
    assert promoted(tmp_path, 3, newest=3) == [None] * 3
    assert chosen(tmp_path / "run").state.step == 3


def test_small_files_that_were_harmed_on_one_node_are_read_from_another(tmp_path):
    save_locally(tmp_path, 5)
    (tmp_path / "node-0" / "step-00000005" / "index.json").write_text("{}")
    assert promoted(tmp_path) == [5, 5]
    assert loads(tmp_path, 2)


def test_nodes_that_hold_different_checkpoints_of_one_step_never_mix_them(tmp_path):
    save_locally(tmp_path / "a", 5, size=2)
    save_locally(tmp_path / "b", 5, size=3)
    (tmp_path / "node-0").mkdir()
    (tmp_path / "node-1").mkdir()
    shutil.copytree(tmp_path / "a" / "node-0" / "step-00000005", tmp_path / "node-0" / "step-00000005")
    shutil.copytree(tmp_path / "b" / "node-0" / "step-00000005", tmp_path / "node-1" / "step-00000005")
    if promoted(tmp_path) == [5, 5]:
        assert not isinstance(examine(tmp_path / "run" / "checkpoints" / "step-00000005", World.alone()), list)
    else:
        assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_under_a_copy_is_an_error_of_all_ranks_and_leaves_no_trace(tmp_path, monkeypatch, full):
    save_locally(tmp_path, 5)
    real = partners_module.HashingWriter

    class Full(real):  # type: ignore[valid-type, misc]
        def __init__(self, path):
            if path.parts[-3] == f"node-{full}":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().__init__(path)

    monkeypatch.setattr(partners_module, "HashingWriter", Full)
    for error in save_locally(tmp_path, 10):
        assert isinstance(error, OSError) and is_mistake(error)
        assert "the local checkpoint could not be written (No space left on device); shared ones" in str(error)
    for node in (0, 1):
        assert [path.name for path in (tmp_path / f"node-{node}").iterdir()] == ["step-00000005"]


def test_a_run_that_begins_anew_in_the_folder_of_another_never_finds_its_state(tmp_path):
    checkpoint = CheckpointConfig(local_interval_steps=5, local_dir=str(tmp_path / "disk"))

    def opened(world: World) -> str:
        folder = LocalFolder.opened(checkpoint, tmp_path / "run", dataclasses.replace(world, local_rank=world.rank))
        assert folder is not None and folder.nodes == Nodes(2, 2)
        (folder.path / "step-00000005").mkdir(exist_ok=True)
        return folder.path.name

    (tmp_path / "run").mkdir()
    first, again = on_ranks(2, opened), on_ranks(2, opened)
    assert first == again == [first[0]] * 2
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (other, _) = on_ranks(2, opened)
    assert other != first[0] and [path.name for path in (tmp_path / "disk").iterdir()] == [other]


def test_a_folder_by_a_variable_is_that_of_the_node(monkeypatch):
    monkeypatch.setenv("NODE_DISK", "/nvme")
    assert located("$NODE_DISK/ours") == Path("/nvme/ours")
    monkeypatch.delenv("NODE_DISK")
    with pytest.raises(Mistake, match=r"checkpoint.local_dir: \$NODE_DISK/ours is .* here; set its variables"):
        located("$NODE_DISK/ours")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"local_interval_steps": 5}, "local_interval_steps: it goes with local_dir"),
        ({"local_dir": "/disk"}, "local_interval_steps: it goes with local_dir"),
        ({"local_interval_steps": 5, "local_dir": "disk"}, "means another folder wherever a job starts"),
    ],
)
def test_local_saves_want_an_interval_and_a_place(keys, words):
    with pytest.raises(ValueError, match=words):
        CheckpointConfig(**keys)


def test_ranks_that_do_not_lie_node_after_node_are_refused_on_all_of_them():
    def nodes(world: World) -> Nodes:
        return Nodes.of(dataclasses.replace(world, local_rank=world.rank // 2))

    for error in on_ranks(4, nodes):
        assert isinstance(error, Mistake) and "4 ranks do not lie 2 to a node" in str(error)


def test_both_kinds_of_saves_come_at_their_intervals_and_where_both_are_due_the_shared_one_serves(tmp_path):
    def go(world: World) -> None:
        keys = {"interval_steps": 10, "local_interval_steps": 4, "local_dir": "/none"}
        run = run_in(tmp_path / "run", tiny_config("none", checkpoint=keys), world)
        run = dataclasses.replace(run, identity=IDENTITY, local=local_folder(tmp_path, world))
        saving = Saving(run, VectorEngine(world), [])  # type: ignore[arg-type]
        saving.begin()
        for step in range(1, 21):
            saving.after_step(moment_of(step, done=step == 20))
        saving.close()

    (tmp_path / "run").mkdir()
    assert on_ranks(2, go) == [None, None]
    assert [event["step"] for event in events_of(tmp_path / "run", "save")] == [10, 20]
    assert [event["step"] for event in events_of(tmp_path / "run", "local save")] == [4, 8, 12, 16]


def test_one_node_saves_without_copies_and_says_so(tmp_path):
    keys = {"interval_steps": 10, "local_interval_steps": 4, "local_dir": "/none"}
    run = run_in(tmp_path, tiny_config("none", checkpoint=keys))
    run = dataclasses.replace(run, identity=IDENTITY, local=local_folder(tmp_path, run.world))
    saving = Saving(run, VectorEngine(), [])  # type: ignore[arg-type]
    saving.begin()
    saving.after_step(moment_of(4))
    saving.close()
    assert held(tmp_path, 0, 4) == {"part-00000.safetensors"}
    assert "with it they are lost" in events_of(tmp_path, "no copies")[0]["reason"]
