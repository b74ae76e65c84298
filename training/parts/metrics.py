"""Lines of metrics at their interval, in metrics.jsonl and TensorBoard (metrics.py says what they hold)."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from common.json_lines import read_last
from model.flops import train_flops
from training import prometheus
from training.hardware import memory_gb
from training.lines import METRICS
from training.metrics import Meter, MetricsWriter
from training.parts.part import Moment, Part, Run
from training.plane import node_name
from training.slowness import Persistence, Slowness

LOG = logging.getLogger("training.parts.metrics")


class Metrics(Part):
    """Measures every step and writes a line every `training.log_interval` and after the last; on rank 0.

    What stands in a line is waited for then, memory is asked for then, and the other ranks are heard then. A rank that
    stays slow by its own seconds gets an event `slow rank`; metrics.prom is the last line for Prometheus.
    """

    def __init__(self, run: Run, step: int, peak_flops: float | None):
        self.run = run
        self.meter = Meter(run.world.size, peak_flops)
        self._node, self._slow = node_name(), Persistence()
        self._begun, self._stepped, self._written = time.monotonic(), 0.0, step
        interval = run.config.training.log_interval
        for last in read_last(run.folder / "metrics.jsonl", METRICS, "loss").records if run.world.is_main else ():
            if last["step"] > step and last.get("time") is not None:
                run.events.write("lost work", step=last["step"], until=last["time"])
        self.writer = MetricsWriter(run.folder, step, interval) if run.world.is_main else None
        for gap in self.writer.gaps if self.writer else ():
            LOG.warning(gap)
            run.events.write("metrics lost", reason=gap)

    def reads(self, moment: Moment) -> bool:
        return moment.due(self.run.config.training.log_interval) or moment.last

    def after_step(self, moment: Moment) -> None:
        config, counts = self.run.config, moment.result.counts
        self.meter.add(moment.result, moment.waited, train_flops(config.model, self.run.vocab_size, counts.work))
        if not self.reads(moment):
            return
        world, figures = self.run.world, self.meter.line()
        mine = (memory_gb(world.device), Slowness.of(own_seconds(figures), world.rank, self._node))
        memory, slowness = world.plane.join(mine, lambda a, b: (max(a[0], b[0]), a[1].joined(b[1])))
        if self.writer:
            totals = {
                "samples_consumed": moment.state.samples_consumed,
                "tokens_consumed": moment.state.tokens_consumed,
                "memory_gb": memory,
                "time": time.time(),
            }
            slow = slowness.figures() if world.size > 1 else {}
            drawn = self.run.sources and {"sources": self.run.sources.figures(moment.state.samples_consumed)}
            line = {"step": moment.step, **figures, "lr": moment.lr, **totals, **slow, **(drawn or {})}
            self.writer.training(line)
            self._tell_of(slowness)
            self._stepped += line["step_seconds"] * (moment.step - self._written)
            self._written = moment.step
            ratio = {"start_goodput_ratio": self._stepped / (time.monotonic() - self._begun)}
            prometheus.write(self.run.folder, line | ratio, config.name)

    def _tell_of(self, slowness: Slowness) -> None:
        for ratio, rank, node in self._slow.news(slowness):
            words = f"rank {rank} on node {node} takes {ratio:.2f} times as long as the median rank"
            self.run.events.write("slow rank", rank=rank, node=node, ratio=ratio, message=words)
            LOG.warning(words)

    def before_save(self) -> None:
        if self.writer:
            self.writer.flush()

    def finish(self) -> None:
        if self.writer:
            self.writer.close()


def own_seconds(figures: Mapping[str, Any]) -> float:
    """Seconds of a step that this rank needed for itself: its forward passes, which wait for no other rank.

    Backward passes and the update wait for the others' gradients. At ZeRO 3, and where layers or rows are shared,
    forward passes wait too, and a slow rank shows less.
    """
    return figures["forward_seconds"]
