"""What a trial of chaos.py does to a run: a pure function of a seed and the trial's number.

    seed, number -> Trial: a way to train, and for each start what strikes it and when, and what is damaged after it

Moments are those that anybody can see from outside, in the files of the run: its processes, its lines of metrics, the
folder that a checkpoint is written in. After a moment a strike waits for a while, so that it lands anywhere.
"""

import dataclasses
import random
from typing import Any

STEPS, INTERVAL, EVALUATION = 36, 6, 9
"""Steps of a run, and those between checkpoints and evaluations."""
KEEP = 2
HANG_MINUTES = 1.0
"""How long ranks wait for each other: what a stopped rank costs, and more than any phase takes on a busy machine."""
VOCAB_SIZE = 320
OBJECTIVES = {"causal": "next_token", "prefix": "prefix_lm", "encoder": "masked_lm", "encdec": "span_corruption"}
"""An objective for each shape."""
DELAYS = {"start": 9.0, "steps": 0.2, "snapshot": 0.05, "commit": 0.1, "evaluation": 0.15}
"""Longest wait after each moment, in seconds: about what the phase takes."""
DEEDS = {"SIGKILL": 8, "SIGTERM": 2, "SIGINT": 2, "SIGSTOP": 1, "disk full": 2}
"""What strikes, and how often for one of the others."""
TARGETS = ("rank 0", "rank 1", "both ranks", "launcher", "torch's launcher")
DAMAGES = ("truncated", "bit flipped", "missing")
DAMAGED_FILES = ("part-00000.safetensors", "part-00001.safetensors", "index.json", "state.json", "checksums.json")


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to train on two ranks."""

    shape: str
    zero_stage: int
    precision: str
    tensor: int

    @property
    def name(self) -> str:
        """What it is called in tables, and as a folder."""
        return f"{self.shape}-zero{self.zero_stage}-{self.precision}" + ("-tensor2" if self.tensor > 1 else "")


@dataclasses.dataclass(frozen=True)
class Strike:
    """What happens to one start of the run."""

    deed: str
    """A signal, or `disk full`."""
    target: str
    """Whom a signal goes to."""
    moment: str
    """start, steps, snapshot, commit or evaluation."""
    nth: int
    """Which of such moments since the start, from 1."""
    delay: float
    """Seconds after the moment."""
    damage: tuple[str, str, float] | None
    """What becomes of the newest checkpoint once the start is over, if there are two: how, which file, where in it."""

    @property
    def words(self) -> str:
        """As tables show it."""
        return f"{self.deed_in_words} in {self.moment} {self.nth}"

    @property
    def deed_in_words(self) -> str:
        """What is done to whom."""
        return self.deed if self.deed == "disk full" else f"{self.deed} to {self.target}"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A run, and what happens to its starts, one after the other; then it is left alone."""

    number: int
    way: Way
    strikes: tuple[Strike, ...]


def trial(seed: int, number: int) -> Trial:
    """The trial of that number."""
    rng = random.Random(f"{seed}/{number}")
    return Trial(number, _way(rng), tuple(_strike(rng) for _ in range(rng.choice((1, 2, 2, 3)))))


def _way(rng: random.Random) -> Way:
    stage, precision = rng.choice([(s, p) for s in range(4) for p in ("fp32", "bf16") if (s, p) != (0, "bf16")])
    return Way(rng.choice(list(OBJECTIVES)), stage, precision, rng.choice((1, 1, 2)))


def _strike(rng: random.Random) -> Strike:
    deed = rng.choices(list(DEEDS), list(DEEDS.values()))[0]
    moment, target = rng.choice(list(DELAYS)), rng.choice(TARGETS)
    if deed == "SIGSTOP":  # a rank that nobody waits for is nobody's loss, and while ranks start they wait for minutes
        moment, target = rng.choice(("steps", "snapshot", "commit", "evaluation")), rng.choice(("rank 0", "rank 1"))
    damage = None
    if rng.random() < 0.2:
        damage = (rng.choice(DAMAGES), rng.choice(DAMAGED_FILES), rng.random())
    nth = 1 if moment == "start" else rng.randint(1, 10) if moment == "steps" else rng.randint(1, 2)
    return Strike(deed, target, moment, nth, rng.uniform(0, DELAYS[moment]), damage)


def config_of(way: Way, data: str, runs_dir: str, name: str) -> dict[str, Any]:
    """The config of a run; by the same way any two differ in their folders only."""
    model = {"shape": way.shape, "num_layers": 2, "d_model": 32, "num_heads": 4, "num_kv_heads": 2, "d_ff": 64}
    return {
        "name": name,
        "runs_dir": runs_dir,
        "tokenizer": {"path": "none"},
        "data": {"path": data},
        "objective": {"name": OBJECTIVES[way.shape]},
        "model": model,
        "optimizer": {"lr": 3e-3, "gradient_clipping": 0.5},
        "schedule": {"warmup_steps": 3},
        "parallel": {"tensor": way.tensor},
        "training": {
            "steps": STEPS,
            "sequence_length": 64,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "num_processes": 2,
            "zero_stage": way.zero_stage,
            "precision": way.precision,
            "threads_per_process": 1,
            "peak_tflops": 1.0,
            "start_minutes": 5.0,
            "hang_minutes": HANG_MINUTES,
        },
        "evaluation": {"interval_steps": EVALUATION, "num_samples": 16},
        "checkpoint": {"interval_steps": INTERVAL, "keep": KEEP},
    }
