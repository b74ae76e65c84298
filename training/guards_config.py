"""Section `guards` of a run's config: which steps are passed over, and when a run gives up (see spikes.py)."""

from typing import Literal

from pydantic import Field, model_validator

from common.mistakes import Mistake
from common.section import Section

MOST_IN_WINDOW = 100_000
"""Steps of the window: its median is taken anew in every step."""


class GuardsConfig(Section):
    """What keeps a bad step from the weights."""

    skips_in_a_row: int = Field(default=3, ge=0, le=1000)
    """Steps in a row that may be passed over; one more ends the run with a sentence, or rolls it back. 0: the first."""
    spikes: Literal["none", "skip", "roll_back"] = "none"
    """Whether steps are passed over whose loss or gradient norm is far above those before; `roll_back` goes back to the
    checkpoint before too many in a row and jumps over their samples (PaLM, arXiv 2204.02311, section 5)."""
    window: int = Field(default=128, ge=8, le=MOST_IN_WINDOW)
    """Steps, the last that were not passed over, whose median says what is usual."""
    deviations: float = Field(default=6.0, gt=0, le=1e6)
    """Standard deviations above the median from which on a loss or norm is a spike."""
    min_steps: int = Field(default=64, ge=2, le=MOST_IN_WINDOW)
    """Steps in the window before any is judged."""
    roll_backs: int = Field(default=3, ge=1, le=1000)
    """Times that a run may roll back; one more ends it with a sentence."""
    replica_check_interval: int | None = Field(default=None, ge=1, le=10**9)
    """Steps between comparisons of what ranks hold alike; empty compares nothing. Reads all weights once each time."""
    recompute_interval: int | None = Field(default=None, ge=1, le=10**9)
    """Steps after which one is computed twice more, to see that a rank gets the same bits; empty never does."""

    reload_check: bool = False
    """Keep the loss of a fixed batch with each checkpoint, and see after loading that it is the same to the bit."""

    @model_validator(mode="after")
    def _window_fills(self):
        if self.min_steps > self.window:
            raise Mistake(f"min_steps: {self.min_steps} steps never fit into a window of {self.window}; lower it")
        return self
