"""Phases of a rank, from its start to its end; each has a deadline of its own (config section `deadlines`).

rendezvous -> import -> data -> load -> first step -> step, save, evaluation, in turns -> leaving
"""

import enum


class Phase(enum.StrEnum):
    """What a rank is at."""

    RENDEZVOUS = "rendezvous"
    """Joining the others."""
    IMPORT = "import"
    """Importing DeepSpeed."""
    DATA = "data"
    """Opening the dataset, choosing a checkpoint."""
    LOAD = "load"
    """Making or loading model and optimizer."""
    FIRST_STEP = "first step"
    """The first batch and step of a start."""
    STEP = "step"
    """A batch, its step and its line of metrics."""
    SAVE = "save"
    """A checkpoint."""
    EVALUATION = "evaluation"
    """An evaluation."""
    LEAVING = "leaving"
    """Everything after the last step."""
