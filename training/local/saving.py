"""Writing a local checkpoint: complete when every node has its parts, its copies of another's and the small files.

parts and copies, beside -> digests -> small files of rank 0 on every node -> renamed on all -> older ones deleted
"""

from pathlib import Path

from common.files import discard, sync_folder
from training import fence
from training.distributed import World
from training.local.folder import LocalFolder
from training.local.partners import Partners
from training.state.folder import give_up, name_aside, step_name
from training.state.identity import RunIdentity, RunState, dump_state
from training.state.parts import part_name, pieces_of, write_part
from training.state.saving import index_for, small_files, write_small_files
from training.state.snapshot import Snapshot
from training.state.together import everywhere, on_main


class LocalSaves:
    """Saves on the nodes of a run, over exchanges of their own."""

    def __init__(self, local: LocalFolder, partners: Partners | None, world: World, run_dir: Path):
        self._local, self._partners, self._world, self._run_dir = local, partners, world, run_dir

    def commit(self, snapshot: Snapshot, state: RunState, identity: RunIdentity) -> Path:
        """Writes a checkpoint to the nodes' disks and returns its folder on this one; all ranks call it together.

        Raises OSError on every rank when one could not write: nothing half-written is left there.
        """
        local, world = self._local, self._world
        name = on_main(world, lambda: self._name_aside(state.step))
        aside, final = local.path / name, local.path / step_name(state.step)
        try:
            local.once(world, lambda: self._make_room(aside))
            digest = everywhere(world, lambda: self._write(aside, snapshot))
            digests = dict(world.gather_to_main((part_name(world.mesh.part), digest)) or ())
            data = dump_state(state, identity)
            contents = on_main(world, lambda: small_files(digests, index_for(snapshot, len(digests)), data))
            local.once(world, lambda: write_small_files(aside, contents))
            on_main(world, lambda: fence.check(self._run_dir, world.attempt))
            local.once(world, lambda: self._put_in_place(aside, final))
            return final
        except OSError as error:
            reason = f"the local checkpoint could not be written ({error.strerror or error}); shared ones are untouched"
            raise OSError(error.errno, f"{local.path}: {reason}") from error
        finally:
            if local.is_first:
                discard(aside)

    def close(self) -> None:
        """Ends the connections."""
        if self._partners is not None:
            self._partners.close()

    def _name_aside(self, step: int) -> str:
        fence.check(self._run_dir, self._world.attempt)
        return name_aside(step, self._world.attempt)

    def _make_room(self, aside: Path) -> None:
        self._local.sweep()
        aside.mkdir()

    def _write(self, aside: Path, snapshot: Snapshot) -> str:
        """Writes this rank's part and the copy of another's; the digest of its own."""
        name = part_name(self._world.mesh.part)
        kinds = {kind: [part] for kind, part in snapshot.kinds.items()}
        digest = write_part(aside / name, kinds)
        if self._partners is not None:
            self._partners.swap(aside, name, pieces_of(kinds), digest)
        return digest

    def _put_in_place(self, aside: Path, final: Path) -> None:
        if final.exists():  # a run that went back to an older checkpoint comes by here again
            give_up(final)
        aside.rename(final)
        sync_folder(final.parent)
        self._local.give_up_old()
        self._local.sweep()
