"""Spoilt files against the code that reads them: success with the right data, or one sentence and exit code 2.

    python -m benchmarks.fuzz [--cases 10000] [--seed S] [--jobs N] [--only KIND [--case N]] [--json FILE]

    kind, seed, number -> a valid folder with one file spoilt -> its reader, in a process of its own -> verdict

Configs, profiles, manifests, shards, tokenizers, checkpoints, metrics, events and the other small files of a run are
spoilt in all the ways of mutations.py and read by the functions behind the commands; of every tenth case the command
itself is run besides. Wrong is a traceback, more than one sentence, a wait of more than a few seconds, a process that
dies, and data that is not what was written. `--only KIND --case N --seed S` does one case again, here and now, and says
what was done to which file. Exit status 1 when a case is wrong.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import faulthandler
import functools
import gc
import importlib
import io
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import launcher.cli
from benchmarks.fuzz_kinds import ALL, Kind
from benchmarks.mutations import Mutation, mutated
from common.mistakes import SENTENCE, is_mistake, sentence

SECONDS = 20
"""Most that a case may take; usual are some hundredths."""
MEMORY = 8 * 2**30
"""Most address space of a case, in bytes: that of torch, and room to be wasteful."""
FILE_BYTES = 2**28
"""Longest file that a case may write."""
EVERY = 10
"""Of so many cases, one is given to the command too."""
LATE = ("launcher.generate", "launcher.inspection", "launcher.preflight", "launcher.stages", "model.exchange.convert")
"""What commands import when they are called: seconds that need to pass once only."""
AT_ONCE = 20
"""Cases that are done in one process, as long as none ends it."""
USUAL_PATH = os.environ.get("PATH", "")
READ, REFUSED, WRONG = "read", "refused", "wrong"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a case ended."""

    kind: str
    """Its kind."""
    number: int
    """Its number among those of its kind."""
    outcome: str
    """read, refused or wrong."""
    words: str
    """What was said, or what is wrong."""
    done: str
    """What was done to which file."""


class Valid:
    """Valid folders of the kinds, made once, and what their readers say of them."""

    def __init__(self, work: Path, kinds: Sequence[Kind]):
        self.work = work
        self.folders: dict[Callable[[Path], object], Path] = {}
        self.found: dict[str, Any] = {}
        for kind in kinds:
            if kind.make not in self.folders:
                folder = self.folders[kind.make] = work / f"valid-{len(self.folders)}"
                folder.mkdir()
                with contextlib.chdir(folder):
                    kind.make(folder)
            with self.copy(kind) as folder, contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
                self.found[kind.name] = (kind.right or kind.read)(folder)

    @contextlib.contextmanager
    def copy(self, kind: Kind) -> Iterator[Path]:
        """A copy of a kind's folder to be spoilt; gone afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self.work))
        try:
            shutil.copytree(self.folders[kind.make], folder, dirs_exist_ok=True)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _said(folder).unlink(missing_ok=True)

    def case(self, kind: Kind, number: int, seed: int) -> tuple[str, Mutation]:
        """Which file is spoilt in a case, and how."""
        rng = random.Random(f"{seed}/{kind.name}/{number}")
        name = rng.choice(list(kind.files))
        return name, mutated((self.folders[kind.make] / name).read_bytes(), kind.files[name], rng)

    @contextlib.contextmanager
    def spoilt(self, kind: Kind, number: int, seed: int) -> Iterator[Path]:
        """The folder of a case; gone afterwards."""
        name, mutation = self.case(kind, number, seed)
        with self.copy(kind) as folder:
            mutation.put(folder / name)
            kind.mend(folder)
            yield folder


def judged(cases: Sequence[tuple[Kind, int]], seed: int, valid: Valid) -> list[Verdict]:
    """Does some cases and says how each ended."""
    ends = isolated([functools.partial(_outcome, kind, number, seed, valid) for kind, number in cases])
    done = (valid.case(kind, number, seed) for kind, number in cases)
    return [
        Verdict(kind.name, number, *end, f"{name}: {mutation.words}")
        for (kind, number), end, (name, mutation) in zip(cases, ends, done, strict=True)
    ]


def _outcome(kind: Kind, number: int, seed: int, valid: Valid) -> tuple[str, str]:
    """How a case ends: the reader first, then, now and then, the command on another copy."""
    with valid.spoilt(kind, number, seed) as folder:
        outcome, words = _read(kind, folder, valid.found[kind.name])
    if outcome == WRONG or not kind.words or number % EVERY:
        return outcome, words
    with valid.spoilt(kind, number, seed) as folder:
        ((ended, said),) = isolated([functools.partial(_run, kind.words, folder)])
    return (WRONG, said) if ended == WRONG else (outcome, words)


def isolated(actions: Sequence[Callable[[], tuple[str, str]]]) -> list[tuple[str, str]]:
    """What each returns, in a process that can neither wait for ever nor take all memory; after its end in another."""
    answers: list[tuple[str, str]] = []
    while len(answers) < len(actions):
        answers += _answered(actions[len(answers) :])
    return answers


def _answered(actions: Sequence[Callable[[], tuple[str, str]]]) -> list[tuple[str, str]]:
    """The same as far as one process gets, the one that ended it included."""
    signal.alarm(0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _limit_this_process()
            for action in actions:
                signal.alarm(SECONDS)
                os.write(writer, json.dumps([text[:2000] for text in action()]).encode() + b"\n")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answers = [(outcome, words) for outcome, words in map(json.loads, pipe)]
    _, status = os.waitpid(child, 0)
    if len(answers) < len(actions):
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        ends = {0: "ended without a word", signal.SIGALRM: f"no end within {SECONDS} s"}
        answers.append((WRONG, ends.get(number) or f"ended by {signal.strsignal(number)}"))
    return answers


def _limit_this_process() -> None:
    faulthandler.disable()  # how a case died is told by its parent
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for what, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, FILE_BYTES), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))


def _read(kind: Kind, folder: Path, valid: Any) -> tuple[str, str]:
    """The reader on a spoilt folder."""
    _silence(folder)
    os.chdir(folder)
    try:
        found = kind.read(folder)
    except BaseException as error:
        if not is_mistake(error):
            return WRONG, _traced(error)
        said = sentence(error)
        whole = said.isprintable() and 0 < len(said) <= SENTENCE
        return (REFUSED, said) if whole else (WRONG, f"no one sentence: {said[:300]!r}")
    wrong = kind.judge(found, valid)
    return (WRONG, wrong) if wrong else (READ, "")


def _run(words: Sequence[str], folder: Path) -> tuple[str, str]:
    """The command on a spoilt folder: exit status 0, or 2 and one sentence."""
    said = _silence(folder)
    os.chdir(folder)
    sys.argv = ["shardline", *words]
    try:
        launcher.cli.main()
        code: Any = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        return WRONG, f"shardline {' '.join(words)}: {_traced(error)}"
    sys.stderr.flush()
    lines = [line for line in said.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    fits = (code == 0 and not lines) or (code == 2 and len(lines) == 1)
    return (
        (READ, "")
        if fits
        else (WRONG, f"shardline {' '.join(words)}: exit code {code}, {len(lines)} sentences {lines}")
    )


def _silence(folder: Path) -> Path:
    """Sends what this process prints to a file, which it returns."""
    said = _said(folder)
    descriptor = os.open(said, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDWR)
    for source, target in ((nothing, 0), (descriptor, 1), (descriptor, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ["PATH"] = f"{folder / 'commands'}{os.pathsep}{USUAL_PATH}"
    logging.disable()
    return said


def _said(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.said")


def _traced(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames[-4:]))
    return f"{type(error).__name__}: {str(error)[:200]} [{where}]"


def plan(kinds: Sequence[Kind], num_cases: int) -> list[tuple[Kind, int]]:
    """Every case, by kind and number; kinds get their shares of them."""
    shares = [kind for kind in kinds for _ in range(kind.share)]
    counts = dict.fromkeys((kind.name for kind in kinds), 0)
    cases = []
    for number in range(num_cases):
        kind = shares[number % len(shares)]
        cases.append((kind, counts[kind.name]))
        counts[kind.name] += 1
    return cases


def campaign(kinds: Sequence[Kind], num_cases: int, seed: int, jobs: int, work: Path) -> list[Verdict]:
    """Does all cases, `jobs` at a time, and shows how far it is."""
    torch.set_num_threads(1)  # threads do not survive a fork
    for module in LATE:
        importlib.import_module(module)
    gc.freeze()  # a collection in a child would copy all that it shares with its parent
    valid, cases = Valid(work, kinds), plan(kinds, num_cases)
    errands = [cases[at : at + AT_ONCE] for at in range(0, len(cases), AT_ONCE)]
    fork = multiprocessing.get_context("fork")
    _SHARED[:] = [valid, seed]
    with concurrent.futures.ProcessPoolExecutor(jobs, fork) as pool:
        done = pool.map(_errand, [[(kind.name, number) for kind, number in errand] for errand in errands])
        console = Console(stderr=True)
        shown = track(done, "cases", len(errands), console=console, disable=not console.is_terminal)
        return [verdict for verdicts in shown for verdict in verdicts]


_SHARED: list[Any] = []
"""Valid folders and the seed, for workers that are forked."""


def _errand(cases: list[tuple[str, int]]) -> list[Verdict]:
    valid, seed = _SHARED
    kinds = {kind.name: kind for kind in ALL}
    return judged([(kinds[name], number) for name, number in cases], seed, valid)


def reproduction(verdict: Verdict, seed: int) -> str:
    """The command that does a case again."""
    return f"python -m benchmarks.fuzz --seed {seed} --only '{verdict.kind}' --case {verdict.number}"


def show(verdicts: Sequence[Verdict], seed: int, seconds: float) -> None:
    """Prints the sums by kind, and every case that is wrong."""
    console = Console(width=160)
    table = Table(title=f"{len(verdicts):,} spoilt files, seed {seed}, {seconds:.0f} s", title_justify="left")
    for name in ("kind", "cases", READ, REFUSED, WRONG):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind in [*dict.fromkeys(verdict.kind for verdict in verdicts), "all"]:
        mine = [verdict.outcome for verdict in verdicts if kind in (verdict.kind, "all")]
        table.add_row(kind, f"{len(mine):,}", *(f"{mine.count(outcome):,}" for outcome in (READ, REFUSED, WRONG)))
    console.print(table)
    for verdict in verdicts:
        if verdict.outcome == WRONG:
            for line in (f"{verdict.done[:200]!r}", verdict.words, reproduction(verdict, seed)):
                console.print(f"  {line}", markup=False, soft_wrap=True)
            console.print()


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="how many, over all kinds")
    parser.add_argument("--seed", type=int, default=1, help="decides what is done to which file")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--only", choices=[kind.name for kind in ALL], action="append", help="a kind to fuzz alone")
    parser.add_argument("--case", type=int, help="one case of a kind, with what was done and what came of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every case to FILE")
    args = parser.parse_args()
    kinds, started = [kind for kind in ALL if kind.name in (args.only or [kind.name])], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="shardline-fuzz-") as work:
        if args.case is not None:
            (verdict,) = judged([(kinds[0], args.case)], args.seed, Valid(Path(work), kinds[:1]))
            print(f"{verdict.done!r}\n{verdict.outcome}: {verdict.words}")
            return int(verdict.outcome == WRONG)
        verdicts = campaign(kinds, args.cases, args.seed, args.jobs, Path(work))
    show(verdicts, args.seed, time.monotonic() - started)
    if args.json:
        args.json.write_text(json.dumps([dataclasses.asdict(verdict) for verdict in verdicts], indent=1) + "\n")
    return int(any(verdict.outcome == WRONG for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
