"""Nodes that failed, remembered by all runs of a site: `submit` leaves out those that fail again and again.

    job scripts, `shardline nodes forget` -> lines of one file -> failures by node -> points -> left out until

A failure has points by its cause and counts for some days; failures of a node within an hour of one another are one,
for many jobs may meet the same outage. A node is left out while it has too many points, so it comes back by itself,
and at once when it is forgotten, as after a repair.
"""

import dataclasses
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from common.json_lines import NUMBER, Form, Lines, append_line, examine
from launcher import practice
from launcher.profiles import ClusterProfile, LemonsConfig

FAILURE = Form({"time": NUMBER, "node": str, "cause": str}, {"why": str, "run": str, "job": int})
"""A line of the file."""
FORGOTTEN = "forgotten"
"""Cause of a line that makes all before it of the same node count no more."""
OUTAGE_SECONDS = 3600
"""Failures of a node that are no further apart are one."""
DAY = 86400


@dataclasses.dataclass(frozen=True)
class Failure:
    """One outage of a node."""

    time: float
    """When it began, seconds since 1970."""
    cause: str
    """unhealthy, lost, hang or corrupt."""
    why: str
    """What was seen, in words."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A node that has failed within the days that count."""

    name: str
    failures: tuple[Failure, ...]
    """Its outages, oldest first."""
    points: int
    """What they sum up to."""
    until: float | None
    """Till when it is left out, seconds since 1970; None while it has too few points for that."""

    @property
    def in_words(self) -> str:
        """Its failures by cause, as `2 lost, 1 unhealthy`."""
        return ", ".join(f"{count} {cause}" for cause, count in Counter(each.cause for each in self.failures).items())


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a submission does without."""

    left_out: list[Node]
    """Nodes that its jobs shall not get, the worst first."""
    spared: list[Node]
    """Nodes that would be left out too, if there were enough others."""


def nodes_file(cluster: str, profile: ClusterProfile) -> Path:
    """The file of a profile, by its name or path; that of the practice cluster goes with the cluster."""
    if profile.lemons.file:
        return Path(profile.lemons.file)
    if profile.practice:
        return practice.folder() / "state" / "nodes.jsonl"
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return home / "shardline" / f"nodes-{Path(cluster).stem}.jsonl"


def failing_nodes(lines: Lines, rule: LemonsConfig, now: float) -> list[Node]:
    """Nodes that have failed within the rule's days, those with most points first."""
    since = now - rule.days * DAY
    by_node: dict[str, list[Failure]] = {}
    for line in sorted(lines.records, key=lambda line: line["time"]):
        if line["cause"] == FORGOTTEN:
            by_node.pop(line["node"], None)
        elif since < line["time"] <= now + OUTAGE_SECONDS:  # clocks differ, but not by more
            failure = Failure(line["time"], line["cause"], line.get("why", ""))
            by_node.setdefault(line["node"], []).append(failure)
    found = [_node(name, failures, rule) for name, failures in by_node.items()]
    return sorted(found, key=lambda node: (-node.points, -node.failures[-1].time, node.name))


def read_nodes(path: Path, rule: LemonsConfig) -> tuple[list[Node], list[str]]:
    """The same of a file, now, and sentences on what of it could not be read."""
    try:
        lines = examine(path, FAILURE)
    except OSError as error:
        return [], [f"{path}: cannot be read ({error.strerror}), so no node is left out"]
    return failing_nodes(lines, rule, time.time()), lines.left_out


def known_names(path: Path) -> set[str]:
    """Nodes that stand in a file."""
    return {line["node"] for line in examine(path, FAILURE).records}


def forget(path: Path, names: Iterable[str]) -> None:
    """Makes nodes as good as new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        append_line(path, {"time": time.time(), "node": name, "cause": FORGOTTEN})


def choose(nodes: Sequence[Node], present: Iterable[str], needed: int) -> Choice:
    """Which nodes jobs of `needed` nodes do without, of a partition that has `present`: the worst, but enough stay."""
    present = set(present)
    lemons = [node for node in nodes if node.until is not None and node.name in present]
    spare = max(0, len(present) - needed)
    return Choice(lemons[:spare], lemons[spare:])


def sentences(choice: Choice, file: Path) -> list[str]:
    """What a choice means to who submits."""
    said = []
    if choice.left_out:
        names = ", ".join(f"{node.name} ({node.in_words})" for node in choice.left_out)
        said.append(f"left out for failing too often: {names}; --include-lemons takes them all the same ({file})")
    if choice.spared:
        names = ", ".join(f"{node.name} ({node.in_words})" for node in choice.spared)
        said.append(f"failed too often, but without them there would not be enough nodes: {names} ({file})")
    return said


def _node(name: str, failures: Sequence[Failure], rule: LemonsConfig) -> Node:
    weights: Mapping[str, int] = rule.weights.model_dump()
    outages: list[Failure] = []
    last = -math.inf
    for each in failures:
        if each.time - last > OUTAGE_SECONDS:
            outages.append(each)
        elif weights.get(each.cause, 0) > weights.get(outages[-1].cause, 0):
            outages[-1] = each
        last = each.time
    points = [weights.get(each.cause, 0) for each in outages]
    ends = [each.time + rule.days * DAY for number, each in enumerate(outages) if sum(points[number:]) >= rule.points]
    return Node(name, tuple(outages), sum(points), ends[-1] if ends else None)
