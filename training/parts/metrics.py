"""Lines of metrics at their interval, in metrics.jsonl and TensorBoard (metrics.py says what they hold)."""

import logging
import time

from model.flops import train_flops
from training.hardware import memory_gb
from training.metrics import Meter, MetricsWriter
from training.parts.part import Moment, Part, Run

LOG = logging.getLogger("training.parts.metrics")


class Metrics(Part):
    """Measures every step and writes a line every `training.log_interval` and after the last; on rank 0.

    What stands in a line is waited for then, memory is asked for then, and the other ranks are heard then.
    """

    def __init__(self, run: Run, step: int, peak_flops: float | None):
        self.run = run
        self.meter = Meter(run.world.size, peak_flops)
        interval = run.config.training.log_interval
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
        memory = self.run.world.max([memory_gb(self.run.world.device)])[0]
        figures = self.meter.line()
        if self.writer:
            totals = {
                "samples_consumed": moment.state.samples_consumed,
                "tokens_consumed": moment.state.tokens_consumed,
                "memory_gb": memory,
                "time": time.time(),
            }
            self.writer.training({"step": moment.step, **figures, "lr": moment.lr, **totals})

    def before_save(self) -> None:
        if self.writer:
            self.writer.flush()

    def finish(self) -> None:
        if self.writer:
            self.writer.close()
