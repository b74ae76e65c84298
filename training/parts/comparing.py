"""What replicas hold alike, compared every `guards.replica_check_interval` steps (see replicas.py)."""

from training.engine import Engine
from training.marks import leave_marks
from training.parts.part import Moment, Part, Run
from training.replicas import Deviants, deviants, digest_of
from training.state.together import on_main


class Corrupt(RuntimeError):
    """A rank holds or computes other numbers than it should: the run must go on from a checkpoint, without its node."""


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
        against = "most others" if found.certain else "its replicas, and neither is in the majority"
        raise end_of(self.run, moment.step, found, f"holds other weights than {against}")


def end_of(run: Run, step: int, found: Deviants, what: str) -> Corrupt:
    """Tells who is at fault and marks their nodes; the error to raise. All ranks call it together."""
    ranks = [rank for rank, _ in found.named]
    run.events.write("corrupt", step=step, ranks=ranks, nodes=found.nodes, certain=found.certain, reason=what)
    named = [f"corrupt-{node}" for node in found.blamed]
    on_main(run.world, lambda: leave_marks(run.folder, run.world.attempt, *named))
    return Corrupt(f"step {step}: rank {found} {what}; its machine is at fault")
