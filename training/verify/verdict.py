"""What came of a way to train that real ranks have gone: held against the plain loop, in numbers and in words."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipeline.manifest import Manifest
from training.config import RunConfig
from training.state.folder import checkpoints_dir, step_name
from training.state.loading import load_weights
from training.verify.compare import KINDS, Finding, compare, compare_kernels, limits_of
from training.verify.plain import History, train_plainly
from training.verify.small import LR, STEPS

LINES = "lines.json"
"""File beside the checkpoints that holds losses, norms, and what a rank computed with."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of one case."""

    name: str
    """Which way to train."""
    facts: dict[str, Any]
    """Device, kernel and optimizer, by name."""
    findings: list[Finding]
    """What was compared."""

    @property
    def holds(self) -> bool:
        """Whether every comparison is within its limit."""
        return all(each.holds for each in self.findings)

    @property
    def worst(self) -> Finding:
        """The comparison that is nearest to its limit, or farthest beyond it."""
        return max(self.findings, key=lambda each: each.worst / each.allowed)


class Judge:
    """Compares what ranks have done with the plain loop; kernels once for each network."""

    def __init__(self, manifest: Manifest, num_ranks: int, device: torch.device | str):
        self.manifest, self.num_ranks, self.device = manifest, num_ranks, device
        self._kernels: dict[str, list[Finding]] = {}

    def of(self, name: str, config: RunConfig, folder: Path) -> Verdict:
        """The verdict on a small run that left its checkpoints and `LINES` in `folder`."""
        facts = json.loads((folder / LINES).read_text())
        states = {
            step: {kind: load_weights(checkpoints_dir(folder) / step_name(step), kind) for kind in KINDS}
            for step in range(1, STEPS + 1)
        }
        ours = History(facts.pop("losses"), facts.pop("norms"), states)
        readers = self.num_ranks // config.parallel.num_sharing
        plain = train_plainly(
            config, self.manifest, num_ranks=readers, steps=STEPS, lr=LR, device=self.device, given=states
        )
        network = json.dumps([config.model.model_dump(mode="json"), config.training.precision])
        if network not in self._kernels:
            self._kernels[network] = compare_kernels(config, self.manifest, self.device)
        limits = limits_of(config, torch.device(self.device).type)
        return Verdict(name, facts, compare(ours, plain, limits) + self._kernels[network])


def in_lines(verdict: Verdict) -> Sequence[str]:
    """The verdict as a table for a log."""
    facts = ", ".join(f"{name} {value}" for name, value in verdict.facts.items())
    rows = [("what", "largest difference", "allowed", "where", "")]
    for each in verdict.findings:
        mark = "holds" if each.holds else "DIFFERS"
        rows.append((each.what, f"{each.worst:.2g}", f"{each.allowed:.2g}", each.where, mark))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{verdict.name}: {facts}",
        *("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows),
    ]
