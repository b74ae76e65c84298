"""Which steps are passed over: those whose loss or gradient is no number, and spikes, by what was usual before them.

    loss, norm of a step -> verdict, where they lie -> weights changed or not -> window of what is usual

A spike lies so many standard deviations above the median of the last steps that were not passed over. The deviation is
estimated by the median distance from the median (Rousseeuw and Croux 1993), which one outlier in two does not move, and
a spike never gets into the window: it cannot raise its own yardstick. On a GPU nobody waits for any of it.
"""

import dataclasses

import torch

from training.guards_config import GuardsConfig

NORMAL = 1.4826
"""Standard deviations of a normal distribution in its median distance from the median."""
LEAST = 1e-3
"""Least deviation taken, as a share of the median: losses that hardly vary would make a spike of anything."""


@dataclasses.dataclass(frozen=True)
class GuardState:
    """What a checkpoint keeps so that steps are judged after it as if nothing had happened."""

    losses: tuple[float, ...] = ()
    """Of the last steps that were not passed over, oldest first."""
    norms: tuple[float, ...] = ()
    """The same of gradients."""
    in_a_row: int = 0
    """Steps passed over since."""
    jumps: int = 0
    """How often the run has rolled back (see jumps.py)."""


def limits(window: torch.Tensor, config: GuardsConfig) -> torch.Tensor:
    """What a loss and a norm [2] may be at most, given those of steps before, fp64 [2, W]; NaN stands for no step.

    NaN while there are too few.
    """
    median = window.nanmedian(dim=1, keepdim=True).values
    distance = (window - median).abs().nanmedian(dim=1).values
    deviation = torch.maximum(NORMAL * distance, LEAST * median[:, 0].abs())
    enough = (~window.isnan()).sum(dim=1) >= config.min_steps
    return torch.where(enough, median[:, 0] + config.deviations * deviation, torch.nan)


def moved(window: torch.Tensor, figures: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """The window [2, W] after a step of these figures [2], which is left as it was if the step was passed over."""
    return torch.where(held, window, torch.cat([window[:, 1:], figures[:, None]], dim=1))


class Guard:
    """Judges steps one after another, on the device."""

    def __init__(self, config: GuardsConfig, device: torch.device, state: GuardState = GuardState()):
        self.config = config
        figures = [list(each)[-config.window :] for each in (state.losses, state.norms)]
        padded = [[torch.nan] * (config.window - len(each)) + each for each in figures]
        self._window = torch.tensor(padded, dtype=torch.float64, device=device)
        self.limits = torch.full((2,), torch.nan, dtype=torch.float64, device=device)
        """What the loss and the norm of the last step could have been at most, fp64 [2]; NaN where nothing said so."""

    def judge(self, loss: torch.Tensor, norm: torch.Tensor, unsound: torch.Tensor) -> torch.Tensor:
        """Whether to pass over a step, bool []: by its loss and norm, fp64 [], and by whether any rank's was unsound.

        Comes once for each step.
        """
        figures = torch.stack([loss, norm])
        held = unsound | ~figures.isfinite().all() | (norm < 0)
        if self.config.spikes != "none":
            self.limits = limits(self._window, self.config)
            held = held | (figures > self.limits).any()
            self._window = moved(self._window, figures, held)
        return held

    def window(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Losses and norms of the steps in the window, oldest first; waits for the device."""
        losses, norms = (tuple(x for x in row if x == x) for row in self._window.tolist())
        return losses, norms


class Closed(Guard):
    """Passes every step over."""

    def judge(self, loss: torch.Tensor, norm: torch.Tensor, unsound: torch.Tensor) -> torch.Tensor:
        """Yes."""
        return torch.ones_like(unsound)
