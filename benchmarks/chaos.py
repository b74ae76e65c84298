"""Runs that are killed at random moments, again and again, against the same runs left alone: every last bit compared.

    python -m benchmarks.chaos [--runs 100] [--seed S] [--run N] [--jobs J] [--folder DIR] [--json FILE]

    plan (chaos_plan.py) -> starts of `shardline train`, each struck once (chaos_strikes.py) -> a last one -> compared

Every trial trains one of four shapes on two real ranks under some ZeRO stage and precision, some with shared layers.
Its starts are struck by signals to a rank, to both or to a launcher, by a rank that stands still, or by a full disk; in
the start, between steps, as a snapshot is due, while a checkpoint is written, in evaluation. Sometimes the newest
checkpoint is damaged before the next start. In the end weights, moments and every line of metrics must be those of the
undisturbed run, no start may hang or end in a traceback, and no more work may be lost than a checkpoint interval (what
damage costs is counted apart, and so are steps trained while a save was under way). `--run N` with the same seed does
one trial again. The folder of a trial that fails is kept and named. Exit status 1 when one fails.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.chaos_plan import INTERVAL, VOCAB_SIZE, Strike, Trial, Way, config_of, trial
from benchmarks.chaos_strikes import (
    Start,
    can_mount,
    damage,
    fill_disk,
    saved_step,
    small_disk,
    sound_before,
    training_lines,
)
from benchmarks.synthetic import save_shard
from common.json_lines import read_lines
from data_pipeline.manifest import Manifest
from training.lines import EVENT
from training.state.choosing import read_index
from training.state.folder import complete_checkpoints, latest_checkpoint, step_of
from training.state.loading import load_weights

DISK_MEGABYTES = 48
SPARE_STARTS = 5
"""Starts beyond those that are struck, before a run is given up."""
STEP_KEYS = ("loss", "grad_norm", "lr", "samples_consumed", "tokens_consumed", "tokens", "targets", "padding")
EVALUATION_KEYS = ("loss", "unigram_entropy", "targets")


@dataclasses.dataclass
class Outcome:
    """What came of a trial."""

    number: int
    way: str
    struck: list[Strike] = dataclasses.field(default_factory=list)
    """What happened, in its order."""
    damaged: list[str] = dataclasses.field(default_factory=list)
    """What became of checkpoints between starts."""
    starts: int = 0
    lost: int = 0
    """Most steps that one strike cost."""
    lost_to_damage: int = 0
    """The same where the newest checkpoint was damaged."""
    behind: int = 0
    """Steps of it beyond an interval, trained while a save was under way."""
    faults: list[str] = dataclasses.field(default_factory=list)
    """What is wrong; empty when all is as it should be."""
    seconds: float = 0.0
    folder: str = ""
    """Where its files are, if it failed."""

    @property
    def story(self) -> str:
        """What happened, in words."""
        return "; ".join([*(strike.words for strike in self.struck), *self.damaged]) or "nothing struck it"

    @property
    def verdict(self) -> str:
        """In words."""
        return "; ".join(self.faults) or "identical"


def write_dataset(folder: Path) -> Path:
    """Documents that a bigram can predict in part, with the special ids that all objectives want."""
    rng, splits = np.random.default_rng(0), {}
    for split, count in (("train", 900), ("validation", 60)):
        lengths = rng.integers(3, 120, count)
        body = [np.cumsum(rng.integers(0, 3, length - 2)) + rng.integers(0, VOCAB_SIZE) for length in lengths]
        documents = [np.concatenate([[1], 30 + ids % (VOCAB_SIZE - 30), [2]]) for ids in body]
        splits[split] = [save_shard(folder / f"{split}-00000", np.concatenate(documents), lengths, VOCAB_SIZE)]
    facts: dict[str, Any] = {"tokenizer_fingerprint": "chaos", "vocab_size": VOCAB_SIZE, "dtype": "uint16"}
    facts |= {"bos_id": 1, "eos_id": 2, "special_ids": {"pad": 0, "mask": 3}, "config_fingerprint": "chaos"}
    Manifest(**facts, num_sentinels=20, first_sentinel_id=5, splits=splits).save(folder)  # type: ignore[arg-type]
    return folder


class Ground:
    """Where trials are done: the dataset, and the undisturbed run of each way, trained when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder, self.data = folder, write_dataset(folder / "dataset")
        self.can_mount = can_mount(folder / "disk")
        self._locks: dict[Way, threading.Lock] = {}
        self._guard = threading.Lock()

    def config(self, way: Way, runs_dir: Path, name: str) -> Path:
        """Writes the config of a run and returns its path."""
        runs_dir.mkdir(parents=True, exist_ok=True)
        path = runs_dir / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config_of(way, str(self.data), str(runs_dir), name)))
        return path

    def undisturbed(self, way: Way) -> Path:
        """Folder of the run of this way that nothing happened to."""
        with self._guard:
            lock = self._locks.setdefault(way, threading.Lock())
        runs = self.folder / "undisturbed"
        with lock:
            if not (runs / way.name).exists():
                config, log = self.config(way, runs, way.name), runs / f"{way.name}.log"
                code = Start(config, runs / way.name, log).finish()
                if code != 0:
                    raise RuntimeError(f"the undisturbed run {way.name} ended with {code}:\n{log.read_text()[-3000:]}")
        return runs / way.name


def attempt(plan: Trial, ground: Ground) -> Outcome:
    """Does a trial from its first start to the comparison."""
    began, straight = time.monotonic(), ground.undisturbed(plan.way)
    outcome, home = Outcome(plan.number, plan.way.name), ground.folder / f"trial-{plan.number}"
    needs_disk = ground.can_mount and any(strike.deed == "disk full" for strike in plan.strikes)
    home.mkdir()
    with small_disk(home / "disk", DISK_MEGABYTES) if needs_disk else contextlib.nullcontext():
        try:
            run = Course(plan, ground, home, outcome).through()
            outcome.faults += differences(run, straight) if not outcome.faults else []
        except Exception as error:
            outcome.faults.append(f"{type(error).__name__}: {error}")
        if outcome.faults:
            kept = ground.folder / f"failed-{plan.number}"
            shutil.copytree(home, kept, dirs_exist_ok=True)
            outcome.folder = str(kept)
    shutil.rmtree(home, ignore_errors=True)
    outcome.seconds = time.monotonic() - began
    return outcome


class Course:
    """The starts of one trial, and the count of what they cost."""

    def __init__(self, plan: Trial, ground: Ground, home: Path, outcome: Outcome):
        self.plan, self.ground, self.home, self.outcome = plan, ground, home, outcome
        self.runs = home / "disk"
        self.config, self.run = ground.config(plan.way, self.runs, "run"), self.runs / "run"
        self.reached = 0
        """Last step that was trained."""
        self.extra = 0
        """Steps that damage will cost at the next start."""
        self.behind = 0
        """Steps that may have been trained while the last save was under way."""

    def through(self) -> Path:
        """Strikes one start after the other, then lets the run come to its end; returns its folder."""
        strikes = list(self.plan.strikes)
        for number in range(len(strikes) + SPARE_STARTS):
            strike = strikes.pop(0) if strikes else None
            code = self._start(number, strike)
            if code == 0 or self.outcome.faults:
                return self.run
            if strike and strike.damage:
                self._damage(strike)
        self.outcome.faults.append(f"not done after {self.outcome.starts} starts")
        return self.run

    def _start(self, number: int, strike: Strike | None) -> int | None:
        """One start; its exit status, None when it hung."""
        outcome, ballast = self.outcome, None
        start = Start(self.config, self.run, self.home / f"start-{number}.log")
        outcome.starts += 1
        if strike and start.until(strike):
            if strike.deed == "disk full" and self.ground.can_mount:
                outcome.struck.append(strike)
                ballast = fill_disk(self.runs)
            else:  # without the right to mount, a full disk is a kill
                deed = dataclasses.replace(strike, deed="SIGKILL") if strike.deed == "disk full" else strike
                if start.signal(deed):
                    outcome.struck.append(deed)
        code = start.finish()
        if ballast:
            ballast.unlink()
        self._count(start)
        said = start.log.read_text(errors="replace")
        if code is None:
            outcome.faults.append(f"start {number} hung")
        elif "Traceback (most recent call last)" in said and "KeyboardInterrupt" not in said:
            outcome.faults.append(f"start {number}: a traceback")
        elif code == 2 and not ballast:
            outcome.faults.append(f"start {number} gave up: {said.strip().splitlines()[-1][:300]}")
        elif code not in (0, 75) and strike is None:
            outcome.faults.append(f"start {number}, which nothing struck, ended with {code}")
        return code

    def _count(self, start: Start) -> None:
        """What the start found lost when it began, and what would be lost now."""
        outcome = self.outcome
        ready = [event for event in read_lines(self.run / "events.jsonl", EVENT) if event["event"] == "ready"]
        for event in ready:
            if event.get("time", 0) >= start.began:
                lost = self.reached - event["step"]
                if self.extra:
                    outcome.lost_to_damage = max(outcome.lost_to_damage, lost)
                else:
                    outcome.lost = max(outcome.lost, lost)
                allowed = INTERVAL + self.extra + self.behind
                if lost > allowed:
                    outcome.faults.append(f"{lost} steps were lost, where {allowed} may be")
                outcome.behind = max(outcome.behind, lost - INTERVAL - self.extra)
                self.reached, self.extra = event["step"], 0
        self.reached = max([self.reached, *(line["step"] for line in training_lines(self.run))])
        self.behind = INTERVAL if self._was_writing() else 0

    def _was_writing(self) -> bool:
        """Whether a save that had begun never came to its end."""
        home = self.run / "checkpoints"
        if not home.is_dir():
            return False
        saved = saved_step(self.run)
        newer = [path for path in complete_checkpoints(self.run) if step_of(path) > saved]
        return bool(newer) or any(path.name.startswith(".tmp-") for path in home.iterdir()) or self._gave_up(saved)

    def _gave_up(self, saved: int) -> bool:
        """Whether a rank says that a save failed as the run broke off: nothing else is left of that."""
        said = [log.read_text(errors="replace") for log in (self.run / "logs").glob("rank-*.log")]
        names = [f"step-{step:08d}" for step in range(saved + 1, self.reached + 1)]
        return any(f"{name} was being written when the run broke off" in text for text in said for name in names)

    def _damage(self, strike: Strike) -> None:
        before = saved_step(self.run)
        assert strike.damage
        if damage(self.run, *strike.damage):
            self.extra = before - max(sound_before(self.run, before), default=0)
            self.outcome.damaged.append(" ".join(strike.damage[1::-1]))


def differences(run: Path, straight: Path) -> list[str]:
    """What of a run is not, to the last bit, as in the undisturbed one."""
    faults = []
    ours, theirs = history(run), history(straight)
    if ours != theirs:
        at = next((a for a, b in zip(ours, theirs, strict=False) if a != b), f"{len(ours)} lines for {len(theirs)}")
        faults.append(f"another history: {at}")
    one, other = latest_checkpoint(run), latest_checkpoint(straight)
    assert one is not None and other is not None, "a run that is done has a checkpoint"
    if one.name != other.name:
        return [*faults, f"ended at {one.name}, not {other.name}"]
    for kind in read_index(other).kinds:
        mine, its = load_weights(one, kind), load_weights(other, kind)
        unequal = [name for name in its if name not in mine or not torch.equal(mine[name], its[name])]
        if unequal or mine.keys() != its.keys():
            faults.append(f"another {kind} of {len(unequal)} tensors, {unequal[0] if unequal else 'more of them'}")
    return faults


def history(run: Path) -> list[tuple[Any, ...]]:
    """Every line of metrics, as far as equal runs must have it alike; floats as they are written."""
    lines: list[tuple[Any, ...]] = []
    for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        if "evaluation" in record:
            lines.append((record["step"], "evaluation", *(record["evaluation"].get(key) for key in EVALUATION_KEYS)))
        else:
            lines.append((record["step"], *(record.get(key) for key in STEP_KEYS)))
    return lines


def outcomes(plans: list[Trial], ground: Ground, jobs: int) -> Iterator[Outcome]:
    """All trials, `jobs` at a time, as they end."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(attempt, plan, ground) for plan in plans]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()


def show_sums(console: Console, done: list[Outcome], plans: list[Trial]) -> None:
    """Sums of a campaign."""
    struck = [strike for outcome in done for strike in outcome.struck]
    failed = [outcome for outcome in done if outcome.faults]
    table = Table(title="sums", title_justify="left", show_header=False)
    table.add_row("identical", f"{len(done) - len(failed)} of {len(done)}")
    table.add_row("starts", f"{sum(outcome.starts for outcome in done)}")
    table.add_row("strikes", f"{len(struck)} of {sum(len(plan.strikes) for plan in plans)} planned")
    for name, counted in (
        ("by moment", Counter(strike.moment for strike in struck)),
        ("by deed", Counter(strike.deed_in_words for strike in struck)),
    ):
        table.add_row(name, ", ".join(f"{what} {count}" for what, count in counted.most_common()))
    table.add_row("checkpoints damaged", str(sum(len(outcome.damaged) for outcome in done)))
    table.add_row("steps lost at most", f"{max(outcome.lost for outcome in done)}, one interval is {INTERVAL}")
    table.add_row("beyond it while saving", f"{max(0, *(outcome.behind for outcome in done))}")
    table.add_row("lost to damage at most", f"{max(outcome.lost_to_damage for outcome in done)}")
    console.print(table)
    for outcome in failed:
        console.print(f"run {outcome.number}: {outcome.verdict}; {outcome.folder}", markup=False, soft_wrap=True)


def main() -> int:
    """Runs the campaign."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100, help="how many trials")
    parser.add_argument("--seed", type=int, default=1, help="decides what happens in each")
    parser.add_argument("--run", type=int, help="this trial alone")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time; each takes some 2 GB and two cores")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder if empty")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every trial to FILE")
    args = parser.parse_args()
    console = Console(width=160)
    numbers = range(args.runs) if args.run is None else [args.run]
    plans = [trial(args.seed, number) for number in numbers]
    folder = args.folder or Path(tempfile.mkdtemp(prefix="shardline-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    ground = Ground(folder.resolve())
    if not ground.can_mount:
        console.print("no right to mount a small disk here: where the plan says 'disk full', ranks are killed instead")
    done: list[Outcome] = []
    for outcome in outcomes(plans, ground, args.jobs):
        done.append(outcome)
        console.print(
            f"{outcome.number:4}  {outcome.way:30} {outcome.starts} starts  {outcome.lost:2} steps lost  "
            f"{outcome.seconds:4.0f} s  {outcome.verdict}\n      {outcome.story}",
            markup=False,
            soft_wrap=True,
        )
    show_sums(console, done, plans)
    if args.json:
        args.json.write_text(json.dumps([dataclasses.asdict(outcome) for outcome in done], indent=1) + "\n")
    if not any(outcome.faults for outcome in done) and not args.folder:
        shutil.rmtree(folder, ignore_errors=True)
    return int(any(outcome.faults for outcome in done))


if __name__ == "__main__":
    sys.exit(main())
