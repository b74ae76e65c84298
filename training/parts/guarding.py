"""Steps that are passed over: each told in events.jsonl, and the end of a run that has too many in a row."""

import logging
from collections.abc import Callable
from typing import NoReturn

from common.mistakes import Mistake
from data_pipeline.reading.mix import as_json
from training.engine import Engine
from training.jumps import Jump, RolledBack, note_jump, reach
from training.parts.part import Moment, Run
from training.skip_report import report, write_report
from training.spikes import Guard, GuardState
from training.state.together import on_main
from training.step import ADVICE

LOG = logging.getLogger("training.parts.guarding")


class Guarding:
    """Has a guard that judges every step where the weights are (see spikes.py), and looks later at what it said.

    It is not called after each step, but by the loop once a step's figures are to be had: at most one step later.
    """

    def __init__(self, run: Run, engine: Engine, state: GuardState, saved: Callable[[], None]):
        """`saved` returns once the checkpoint that is being written, if any, is complete; all ranks call it."""
        self.run, self.engine, self._saved = run, engine, saved
        self.guard = Guard(run.config.guards, run.world.device, state)
        self._in_a_row, self._jumps = state.in_a_row, state.jumps

    def state(self) -> GuardState:
        """What a checkpoint keeps, once all steps so far were looked at."""
        losses, norms = self.guard.window()
        return GuardState(losses, norms, self._in_a_row, self._jumps)

    def look(self, moment: Moment) -> None:
        """Takes note of a step; raises ValueError or RolledBack when it is one too many. All ranks call it together."""
        result, limit = moment.result, self.run.config.guards.skips_in_a_row
        if not result.held:
            self._in_a_row = 0
            return
        count, lowest = result.unsound_ranks(self.run.world)
        why = result.why_held(count, lowest)
        found = report(self.engine, moment.data, result, self.run.world)
        on_main(self.run.world, lambda: write_report(self.run.folder, moment.step, found))
        if self._in_a_row >= limit:
            before = f", as in the {limit} steps before it" if limit else ""
            self._give_up(moment, f"{result.where}: {why}, no weight was changed{before}")
        self._in_a_row += 1
        self._tell(moment, why, lowest)

    def _give_up(self, moment: Moment, why: str) -> NoReturn:
        """Rolls the run back where it may, else ends it."""
        config, run = self.run.config.guards, self.run
        if config.spikes != "roll_back":
            raise Mistake(f"{why}; {ADVICE}")
        if self._jumps >= config.roll_backs:
            raise Mistake(f"{why}, and the run has rolled back {self._jumps} times already; {ADVICE}")
        self._saved()  # else it would depend on a disk's speed what there is to go back to
        before = on_main(run.world, lambda: reach(run.folder, moment.step - self._in_a_row, self._jumps))
        jump = Jump(before, moment.state.samples_consumed, why, as_json(moment.state.mix))
        on_main(run.world, lambda: note_jump(run.folder, jump, run.world.attempt))
        run.events.write("roll_back", step=moment.step, before=jump.before, samples=jump.samples, reason=why)
        raise RolledBack(f"{why}; back to before step {jump.before}, on with sample {jump.samples}")

    def _tell(self, moment: Moment, why: str, ranks: list[int]) -> None:
        result, beyond = moment.result, moment.state.samples_consumed
        if self.run.world.is_main:
            LOG.warning("%s: passed over, %s", result.where, why)
        samples = [beyond - self.run.config.training.global_batch_size, beyond - 1]
        facts = {"step": moment.step, "samples": samples, "reason": why, "ranks": ranks}
        self.run.events.write("skip", **facts, **result.figures(), in_a_row=self._in_a_row)
