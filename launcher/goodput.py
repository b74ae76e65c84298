"""Where the time of a run went: each moment from its submission to its end belongs to one kind, so that they add up.

    diary, jobs -> starts of the run, each a row of moments -> spans of one kind -> work that a later start did again
        -> Goodput: seconds by kind, interruptions with their cause and cost

A pure function of records. What a kill or a torn line took out of the diary moves a border; the sum stays the same.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from common.json_lines import Record

KINDS = ("steps", "evaluation", "saving", "lost", "starting", "building", "queue", "stopped", "ending")
"""Kinds of time: what steps took; what they waited for; what a later start trained again; the way to a first step; the
data build; waiting for a scheduler; nothing at all; from a signal, an error or the last step to the end."""
NEXT = {
    "job_start": "nodes",
    "verify": "proof",
    "launch": "ranks",
    "start": "preparing",
    "ready": "first step",
    "first step": "steps",
    "save": "steps",
    "evaluate": "steps",
    "stop": "ending",
    "finish": "ending",
    "error": "ending",
    "job_end": "ending",
}
"""What begins with each event."""
STARTING = ("nodes", "proof", "ranks", "preparing", "first step")
"""Parts of the way to a first step: checking nodes, proving them, starting ranks, model and data, the step itself."""
TRAINING = ("steps", "evaluation", "saving")
"""What is lost where a later start goes on from before it."""
SAVES = ("save", "local save")
"""Events of checkpoints that are complete, on the file system that all share or on the nodes' own disks."""
SILENT_SECONDS = 600
"""A start that has said nothing for so long is over, whether it said so or not."""
MICRO = 1_000_000


@dataclasses.dataclass(frozen=True)
class Span:
    """Time of one kind, in whole microseconds since 1970, so that sums are exact."""

    begin: int
    end: int
    what: str
    """A kind, or the part of a start."""

    def within(self, begin: int, end: int) -> "Span":
        """The part of it between two moments, which may be empty."""
        begin = min(max(self.begin, begin), self.end)
        return Span(begin, max(begin, min(self.end, end)), self.what)

    @property
    def kind(self) -> str:
        """Its kind."""
        return "starting" if self.what in STARTING else self.what


@dataclasses.dataclass(frozen=True)
class Start:
    """One start of the run, by what it left in the diary."""

    events: list[Record]
    """Oldest first."""
    last: int
    """Its last sign of life."""

    @property
    def begin(self) -> int:
        """Its first."""
        return moment(self.events[0])

    @property
    def over(self) -> bool:
        """Whether it said that it ends."""
        return any(event["event"] in ("stop", "finish", "error", "job_end") for event in self.events)

    @property
    def finished(self) -> bool:
        """Whether it did what was to be done."""
        return any(event["event"] == "finish" for event in self.events)

    @property
    def of_job(self) -> bool:
        """Whether a scheduler started it."""
        return any("job" in event for event in self.events)

    @property
    def cause(self) -> str:
        """Why it ended, in words."""
        by_kind = {event["event"]: event for event in self.events}
        if "message" in by_kind.get("error", {}):
            return by_kind["error"]["message"]
        if "node_lost" in by_kind:
            return f"node lost: {by_kind['node_lost'].get('nodes', '?')}"
        if "message" in by_kind.get("job_end", {}):
            return by_kind["job_end"]["message"]
        if "stop" in by_kind:
            return f"stopped by {by_kind['stop'].get('signal', 'a signal')}"
        return "it left no word"


@dataclasses.dataclass(frozen=True)
class Interruption:
    """What an end before the last step cost."""

    time: float
    """When, seconds since 1970."""
    cause: str
    """Why, in words."""
    seconds: float
    """From then to the next step, and the work that was lost with it."""
    lost: float
    """That work."""


@dataclasses.dataclass(frozen=True)
class Goodput:
    """How the wall time of a run went."""

    wall: float
    """Seconds from its submission, or first start, to its end or now; the sum of all kinds."""
    seconds: dict[str, float]
    """By kind."""
    starting: dict[str, float]
    """Those of `starting`, by part."""
    ratio: float
    """Share of the wall time that went into steps which count."""
    interruptions: list[Interruption]
    """Oldest first."""


def goodput(events: Sequence[Record], jobs: Sequence[Record], last: Record, now: float) -> Goodput:
    """How the time went by a run's diary, its jobs and its last line of metrics, up to `now` if it is not finished."""
    starts = starts_of(events, last, now)
    spans = spans_of(starts, jobs, micro(now))
    spans = [part for span in spans for part in without_lost(span, lost_work(starts))]
    by_what = {what: sum(span.end - span.begin for span in spans if span.what == what) for what in STARTING}
    by_kind = {kind: sum(span.end - span.begin for span in spans if span.kind == kind) for kind in KINDS}
    wall = sum(by_kind.values())
    return Goodput(
        wall=wall / MICRO,
        ratio=by_kind["steps"] / wall if wall else 0.0,
        seconds={kind: length / MICRO for kind, length in by_kind.items()},
        starting={what: length / MICRO for what, length in by_what.items() if length},
        interruptions=interruptions(starts, spans),
    )


def starts_of(events: Sequence[Record], last: Record, now: float) -> list[Start]:
    """Starts of the run, the first one first, each with what it still did as the next one found it."""
    groups: dict[str, list[Record]] = {}
    for event in events:
        name = event.get("attempt") or (f"{event['job']}.{event.get('restart', 0)}" if "job" in event else "")
        if name and _is_time(event.get("time")) and event["time"] <= now:
            groups.setdefault(name, []).append(_as_steps_saw_it(event))
    ordered = sorted((sorted(group, key=moment) for group in groups.values()), key=lambda group: moment(group[0]))
    starts = []
    for group, following in itertools.zip_longest(ordered, ordered[1:]):
        signs = [moment(group[-1])]
        if following is None:
            signs += [micro(last["time"])] if _is_time(last.get("time")) and last["time"] <= now else []
        else:  # lines of metrics that it took out are the last signs of this one
            signs += [micro(event["until"]) for event in following if _is_time(event.get("until"))]
            signs = [min(sign, moment(following[0])) for sign in signs]
        starts.append(Start(group, max(signs)))
    return starts


def _as_steps_saw_it(event: Record) -> Record:
    """A save that was written behind the steps, at the moment when these went on: what came later is not in it."""
    due, stalled = event.get("due"), event.get("stalled_seconds")
    if event["event"] not in SAVES or not (_is_time(due) and _is_time(stalled)):
        return event
    return {**event, "time": min(event["time"], due + stalled)}


def spans_of(starts: Sequence[Start], jobs: Sequence[Record], now: int) -> list[Span]:
    """Spans without a gap between them or an overlap, from the first sign of the run to its end or `now`."""
    submitted = [micro(job["time"]) for job in jobs if _is_time(job.get("time"))]
    signs = [*(start.begin for start in starts[:1]), *(time for time in submitted if time <= now)]
    if not signs:
        return []
    spans, cursor = [], min(signs)
    for start, following in itertools.zip_longest(starts, starts[1:]):
        spans.append(Span(cursor, max(cursor, start.begin), "queue" if start.of_job else "stopped"))
        end = start.last if following is None else min(start.last, following.begin)
        if following is None and not start.over and now - start.last < SILENT_SECONDS * MICRO:
            end = now
        begin = max(cursor, start.begin)
        spans += [span.within(begin, max(begin, end)) for span in _moments(start, end)]
        cursor = max(begin, end)
    if not (starts and starts[-1].finished):
        spans.append(Span(cursor, max(cursor, now), "queue" if jobs else "stopped"))
    return [span for span in spans if span.end > span.begin]


def _moments(start: Start, end: int) -> list[Span]:
    """What a start did one after the other, up to `end`."""
    first = start.events[0]
    what = "building" if first.get("stage") == "data" else NEXT.get(first["event"], "ranks")
    follows = NEXT if any(event["event"] == "first step" for event in start.events) else {**NEXT, "ready": "steps"}
    spans, cursor = [], start.begin
    for event in start.events:
        time, taken = moment(event), _seconds_of(event)
        cut = max(cursor, time - taken)
        spans.append(Span(cursor, cut, what))
        if taken:
            spans.append(Span(cut, time, "evaluation" if event["event"] == "evaluate" else "saving"))
        what = what if what in ("building", "ending") else follows.get(event["event"], what)
        cursor = time
    return [*spans, Span(cursor, max(cursor, end), what)]


def _seconds_of(event: Record) -> int:
    """Microseconds before it that a save or an evaluation kept steps from going on."""
    if event["event"] not in (*SAVES, "evaluate"):
        return 0
    seconds = event.get("stalled_seconds", event.get("seconds"))
    return micro(seconds) if _is_time(seconds) else 0


def lost_work(starts: Sequence[Start]) -> list[tuple[int, int]]:
    """Times of steps that a later start trained again: from a checkpoint to whoever goes on there."""
    saves = sorted((moment(event), event["step"]) for name in SAVES for event in _all(starts, name) if "step" in event)
    lost = []
    for ready in _all(starts, "ready"):
        step, time = ready.get("step", 0), moment(ready)
        lost.append((max((when for when, saved in saves if saved == step and when < time), default=0), time))
    if starts and starts[-1].over and not starts[-1].finished:
        lost.append((max((when for when, _ in saves), default=0), starts[-1].last))
    return lost


def without_lost(span: Span, lost: Iterable[tuple[int, int]]) -> list[Span]:
    """A span in parts, those of training that was lost by that name."""
    if span.kind not in TRAINING:
        return [span]
    borders = {span.begin, span.end, *(span.within(*times).begin for times in lost)}
    borders |= {span.within(*times).end for times in lost}
    edges = sorted(borders)
    parts = []
    for begin, end in itertools.pairwise(edges):
        gone = any(since <= begin and end <= until for since, until in lost)
        parts.append(Span(begin, end, "lost" if gone else span.what))
    return parts


def interruptions(starts: Sequence[Start], spans: Sequence[Span]) -> list[Interruption]:
    """Ends of starts that had not finished, with what they cost."""
    found = []
    for index, start in enumerate(starts):
        following = starts[index + 1] if index + 1 < len(starts) else None
        if start.finished or (following is None and not start.over):
            continue
        until = following.last if following else math.inf
        own = [span for span in spans if start.begin <= span.begin < start.last]
        after = [span for span in spans if start.last <= span.begin and span.end <= until]
        lost = sum(span.end - span.begin for span in own if span.kind == "lost")
        idle = sum(span.end - span.begin for span in after if span.kind in ("queue", "stopped", "starting"))
        cost = lost + idle
        found.append(Interruption(start.last / MICRO, start.cause, cost / MICRO, lost / MICRO))
    return found


def moment(event: Record) -> int:
    """When it was."""
    return micro(event["time"])


def micro(seconds: float) -> int:
    """Whole microseconds."""
    return round(seconds * MICRO)


def _all(starts: Sequence[Start], kind: str) -> list[Record]:
    return [event for start in starts for event in start.events if event["event"] == kind]


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value < 1e11
