"""How much memory something takes at its peak, all of the process counted."""

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

from benchmarks.resident import resident


class Peak:
    """Bytes of resident memory above those at the beginning, at the highest point; set on leaving `peak_memory`."""

    growth: int = 0


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measures by the kernel's own high-water mark, mapped files counted too."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the mark to what is resident now
    before, peak = resident("VmRSS"), Peak()
    yield peak
    peak.growth = resident("VmHWM") - before
