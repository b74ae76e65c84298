"""What people see: one console, one way to show progress, one way to end on a mistake."""

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typer.core import TyperGroup

from common.mistakes import SHOWN_PATH, cut, is_mistake, sentence

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

USER_MISTAKE, STOPPED = 2, 75


class Broken(Exception):
    """Something we started elsewhere broke; the message says what is known and where its own words are."""


class Stopped(Exception):
    """The user or a signal ended a run, which has saved itself."""


def say(line: str) -> None:
    """Prints a line as it is, however long and whatever brackets are in it."""
    console.print(line, markup=False, soft_wrap=True)


def command(*words: object) -> str:
    """A command of ours for people to paste."""
    return shlex.join(["shardline", *(os.fspath(word) if isinstance(word, Path) else str(word) for word in words)])


def fail(message: str, code: int = USER_MISTAKE) -> NoReturn:
    """Ends the command with one sentence on standard error."""
    errors.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)


@contextlib.contextmanager
def mistakes_as_sentences() -> Iterator[None]:
    """Turns what a user can get wrong into one sentence; anything else stays a traceback, for it is a bug."""
    try:
        yield
    except Stopped as stopped:
        errors.print(str(stopped), soft_wrap=True)
        sys.exit(STOPPED)
    except Broken as error:
        fail(str(error), code=1)
    except Exception as error:
        if not is_mistake(error):
            raise
        fail(sentence(error))


class Commands(TyperGroup):
    """The commands; what is wrong with their words is echoed in part where it is long."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Reads the words before a command."""
        with _cut_usage():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Reads the words of a command and runs it."""
        with _cut_usage():
            return super().invoke(ctx)


@contextlib.contextmanager
def _cut_usage() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        usage: Any = error
        if hasattr(usage, "format_message"):  # of click or of typer's own copy of it
            usage.message = cut(usage.message, SHOWN_PATH)
        raise


@contextlib.contextmanager
def aside(wanted: bool) -> Iterator[None]:
    """Where wanted, what is said goes to standard error: standard output is for JSON then."""
    before = console.stderr
    console.stderr = before or wanted
    try:
        yield
    finally:
        console.stderr = before


class StageProgress:
    """A bar on a terminal, a line now and then elsewhere (a log file, CI)."""

    LINE_INTERVAL_SECONDS = 15.0

    def __init__(self, title: str):
        self.title = title
        self._live = (
            Progress(
                TextColumn("  {task.description}", markup=False),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
                console=console,
                transient=True,
            )
            if console.is_terminal
            else None
        )
        self._task: TaskID | None = None
        self._printed = time.monotonic()

    def __enter__(self) -> "StageProgress":
        if self._live:
            self._live.start()
            self._task = self._live.add_task(self.title, total=None, detail="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, done: int, total: int | None, detail: str = "", title: str | None = None) -> None:
        """Shows how far the stage is."""
        self.title = title or self.title
        if self._live and self._task is not None:
            self._live.update(self._task, completed=done, total=total, detail=detail, description=self.title)
        elif time.monotonic() - self._printed > self.LINE_INTERVAL_SECONDS:
            self._printed = time.monotonic()
            say(f"  {self.title}: {done}{f' of {total}' if total else ''}  {detail}")
            sys.stdout.flush()

    def note(self, doing: str) -> None:
        """Says what a stage without a count is doing."""
        if self._live and self._task is not None:
            self._live.update(self._task, description=doing)
        else:
            say(f"  {doing} ...")


def loss(value: float | None) -> str:
    """The loss of a step."""
    return "no number (passed over)" if value is None else f"{value:.3f}"


def number(value: float) -> str:
    """A count as people read it: 950, 12.3k, 4.5M, 1.2B."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """A duration as people read it: 12 s, 3 min 20 s, 5 h 2 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
