"""What replicas hold alike, compared every `guards.replica_check_interval` steps (see replicas.py)."""

from pathlib import Path

from training.engine import Engine
from training.parts.part import Moment, Part, Run
from training.replicas import Deviants, deviants, digest_of
from training.state.together import everywhere


class Corrupt(RuntimeError):
    """A rank holds other numbers than its replicas: the run must go on from a checkpoint, without that node."""


class Comparing(Part):
    """Ends the run where a rank differs from its replicas, naming it; its node is left out when a job starts again."""

    def __init__(self, run: Run, engine: Engine):
        self.run, self.engine = run, engine

    def reads(self, moment: Moment) -> bool:
        return self.run.world.mesh.replicas.size > 1 and moment.due(self.run.config.guards.replica_check_interval)

    def after_step(self, moment: Moment) -> None:
        if not self.reads(moment):
            return
        world = self.run.world
        found = deviants(digest_of(self.engine.replicated()), world)
        if found is None:
            return
        ranks = [rank for rank, _ in found.named]
        self.run.events.write("corrupt", step=moment.step, ranks=ranks, nodes=found.nodes, certain=found.certain)
        everywhere(world, lambda: mark_nodes(self.run.folder, world.attempt, found) if world.is_main else None)
        against = "most others" if found.certain else "their replicas, none of which is in the majority"
        raise Corrupt(f"step {moment.step}: rank {found} holds other weights than {against}; its memory is at fault")


def mark_nodes(run_dir: Path, attempt: str, found: Deviants) -> None:
    """Leaves the nodes' names for a job's script (see slurm/functions.sh), where it is known which are at fault."""
    folder = run_dir / "slurm" / f"marks-{attempt}"
    for node in found.nodes if found.certain and folder.is_dir() else ():
        (folder / f"corrupt-{node}").touch()
