"""What lies in a node's own folder: checkpoints of one run, of which a node has a part.

LOCAL_DIR/PLACE-ID/   PLACE: hash of the run's absolute folder     ID: of RUN_DIR/local-id, drawn when the run began
    step-00000020/    newest `KEPT`                                .tmp-*  half-written or given up

A run that begins anew in the folder of one that was deleted has another id, and so never takes up that one's state.
"""

import dataclasses
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import xxhash

from common.files import discard, read_file, write_whole
from common.mistakes import Mistake
from training.config import CheckpointConfig
from training.distributed import World
from training.local.nodes import Nodes
from training.state.folder import give_up, is_checkpoint, step_of
from training.state.together import everywhere, on_main

ID = "local-id"
"""In a run's folder: what tells its local checkpoints from those of another run of the same folder."""
KEPT = 2
"""Local checkpoints of a node: the newest may be incomplete elsewhere."""


@dataclasses.dataclass(frozen=True)
class LocalFolder:
    """The folder of a run on the disk of this rank's node."""

    path: Path
    """Where it is."""
    nodes: Nodes
    """Which ranks share it."""
    is_first: bool
    """Whether this rank does what is done once on each node."""

    @classmethod
    def opened(cls, checkpoint: CheckpointConfig, run_dir: Path, world: World) -> "LocalFolder | None":
        """Makes it, and clears those of deleted runs away; all ranks call it together. None where none is asked for."""
        if checkpoint.local_dir is None:
            return None
        nodes = Nodes.of(world)
        number = on_main(world, lambda: _id_of(run_dir))
        place = xxhash.xxh3_64_hexdigest(os.fsencode(run_dir.absolute()))
        given = checkpoint.local_dir
        home = everywhere(world, lambda: located(given))
        folder = cls(home / f"{place}-{number}", nodes, world.local_rank == 0)
        folder.once(world, lambda: _make(folder.path, place))
        return folder

    def once(self, world: World, action: Callable[[], object]) -> None:
        """Has one rank of each node do something; an error on any node is one of all ranks."""
        everywhere(world, lambda: action() if self.is_first else None)

    def checkpoints(self) -> list[Path]:
        """Folders of checkpoints, oldest step first; that all of one is there is not said."""
        return sorted(filter(is_checkpoint, self.path.iterdir()), key=step_of)

    def sweep(self) -> None:
        """Deletes what half-written checkpoints have left."""
        for leftover in self.path.glob(".tmp-*"):
            discard(leftover)

    def give_up_old(self) -> None:
        """Deletes all but the newest; a kill in the middle leaves nothing that looks complete."""
        for old in self.checkpoints()[:-KEPT]:
            discard(give_up(old))


def located(local_dir: str) -> Path:
    """The folder on this node, its variables filled in. Mistake where they are not set to an absolute path."""
    path = os.path.expandvars(local_dir)
    if "$" in path or not path.startswith("/"):
        raise Mistake(
            f"checkpoint.local_dir: {local_dir} is {path} here; set its variables on every node to an absolute path"
        )
    return Path(path)


def _id_of(run_dir: Path) -> str:
    path = run_dir / ID
    if not path.exists():
        write_whole(path, f"{secrets.token_hex(8)}\n".encode())
    return read_file(path).decode().strip()


def _make(path: Path, place: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob(f"{place}-*"):
        if other != path:
            discard(other)
