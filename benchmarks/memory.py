"""Peak memory of one rank of our trainer, against Hugging Face Trainer with DeepSpeed at the same stage.

    python -m benchmarks.memory [--quick] [--check] [--json FILE]

Both train the model of benchmarks.train_step from the same weights on the same batches in fp32, in a process of their
own, one after the other; losses must agree. A figure is the most memory that was ever resident in the process, less
what is resident when its libraries are imported (measured in a process that imports them and ends).
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

from benchmarks.resident import resident
from benchmarks.table import Row, parser, show
from benchmarks.train_peers import Work
from benchmarks.train_step import LOSS_TOLERANCE, Peer, size_of

GOAL = 1.25
"""How many times less than the peer: 0.8 of its memory."""
IMPORTS = {
    "ours": "import training.engine, training.step",
    "hf": "import deepspeed, transformers; from transformers import LlamaForCausalLM, Trainer",
}
STEPS = 2
"""The first makes the moments, the second has them."""


def imports(name: str) -> int:
    """What is resident in a process that has imported a peer's libraries."""
    code = f"{IMPORTS[name]}; from benchmarks.resident import resident; print(resident('VmRSS'))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def peak(name: str, work: Work) -> tuple[int, list[float]]:
    """The most that was resident in a peer that trained, and its losses."""
    peer = Peer(name, work)
    try:
        _, losses = peer.train(STEPS)
        return resident("VmHWM", peer.process.pid), losses
    finally:
        peer.close()


def main() -> int:
    """Runs the comparison."""
    args = parser(__doc__.splitlines()[0]).parse_args()
    work, _ = size_of(args)
    base = {name: imports(name) for name in IMPORTS}
    rows = []
    for stage in (1,) if args.quick else (1, 2, 3):
        staged = dataclasses.replace(work, zero_stage=stage)
        (ours, own_losses), (theirs, their_losses) = (peak(name, staged) for name in IMPORTS)
        worst = max(abs(a - b) for a, b in zip(own_losses, their_losses, strict=True))
        if not worst <= LOSS_TOLERANCE:
            sys.exit(f"losses differ by {worst:.2g}, so this is no comparison")
        figures = (ours - base["ours"]) / 1e6, (theirs - base["hf"]) / 1e6
        rows.append(Row(f"ZeRO {stage}: MB at most", figures[0], "Hugging Face Trainer", figures[1], GOAL, True))
    return show("One rank, 21.7 M parameters, 8 rows of 512, fp32, imports left out", rows, args)


if __name__ == "__main__":
    sys.exit(main())
