"""Run on two ranks by test_nvme.py: trains with state on a disk, saves, and goes on from there and from elsewhere.

usage: python -m tests.training.nvme_ranks DATASET FOLDER
"""

import dataclasses
import json
import sys
from datetime import timedelta
from pathlib import Path

from tests.training import disk_io
from tests.training.runs import VOCAB_SIZE, tiny_config
from tests.training.step_ranks import batches_of
from training.config import RunConfig
from training.distributed import World, connect, disconnect
from training.engine import Engine
from training.setup import build_engine
from training.state.choosing import choose
from training.state.identity import RunIdentity, RunState
from training.state.loading import load
from training.state.saving import save
from training.step import train_step

FIRST, LAST, LR = 1, 2, 1e-3
DISK = {"device": "nvme", "nvme_path": "DISK"}
GROUPS = {"sub_group_size": 300_000}
"""Several groups of weights a rank, of which some are large enough to be swapped (1 MiB) and some are not."""
WAYS = {
    "optimizer": ("fp32", {"offload_optimizer": DISK, **GROUPS}, {}),
    "both": (
        "fp32",
        {"offload_optimizer": DISK, "offload_param": DISK | {"max_in_cpu": 0}, **GROUPS},
        {},
    ),
    "parameters": ("fp32", {"offload_param": DISK | {"max_in_cpu": 0, "buffer_size": 2_000_000}}, {}),
    "pipeline": (
        "bf16",
        {"offload_optimizer": DISK | {"pipeline_read": True, "pipeline_write": True, "buffer_count": 12}, **GROUPS},
        {"block_size": 262_144, "queue_depth": 2, "intra_op_parallelism": 2, "single_submit": True},
    ),
}
"""By name: precision, keys of zero_optimization, and of aio."""
IN_MEMORY = ("fp32", {}, {})
CROSSINGS = (("optimizer", "memory"), ("memory", "both"), ("both", "parameters"))
"""From which way to which a checkpoint goes; each goes on with its own too."""


def config_of(data: Path, way: str, disk: Path) -> RunConfig:
    """A run whose widest weight is swapped by itself."""
    precision, zero, aio = WAYS.get(way, IN_MEMORY)
    keys = json.loads(
        json.dumps({"zero_optimization": zero} | ({"aio": aio} if aio else {})).replace("DISK", str(disk))
    )
    training = {"zero_stage": 3, "precision": precision, "sequence_length": 16, "global_batch_size": 8}
    model = {"num_layers": 1, "d_model": 256, "d_ff": 1024}
    return tiny_config(
        data, model=model, training=training | {"deepspeed": keys}, optimizer={"gradient_clipping": 0.05}
    )


@dataclasses.dataclass
class Ranks:
    """Two ranks that write what they come to below `folder`."""

    data: Path
    folder: Path
    world: World

    def config(self, way: str) -> RunConfig:
        """The run of a way."""
        return config_of(self.data, way, self.folder / "disk")

    def save(self, engine: Engine, name: str, step: int) -> None:
        """A checkpoint."""
        identity = RunIdentity(2, 3, "", "", "", {}, {})
        save(engine, self.folder / name, RunState(step, 0, 0), identity, self.world)

    def begin(self, way: str) -> dict:
        """Trains to the end and saves each step; tells losses, norms and the files that were on the disk."""
        engine, lines = build_engine(self.config(way), VOCAB_SIZE, self.world), []
        with batches_of(self.config(way), self.world.rank, self.world.size) as loader:
            for step in range(1, LAST + 1):
                result = train_step(engine, next(loader), LR, self.world)
                lines.append((result.loss, result.grad_norm))
                self.save(engine, f"{way} {step}", step)
        folders = [folder.path for folder in engine._swapped.values()]
        files = sorted(path.name for folder in folders for path in folder.rglob("*.swp"))
        engine.close()
        return {"lines": lines, "files": files, "left": sum(folder.exists() for folder in folders)}

    def go_on(self, old: str, new: str) -> float:
        """From the first checkpoint of a way: saves it as it came, then trains to the end and saves; the last loss."""
        engine = build_engine(self.config(new), VOCAB_SIZE, self.world, resuming=True)
        load(engine, choose(self.folder / f"{old} {FIRST}", self.world).checkpoint)
        self.save(engine, f"same {old} {new}", FIRST)
        with batches_of(self.config(new), self.world.rank, self.world.size) as loader:
            for _ in range(FIRST):
                next(loader)
            loss = train_step(engine, next(loader), LR, self.world).loss
        self.save(engine, f"last {old} {new}", LAST)
        engine.close()
        return loss


def main() -> None:
    """Trains in every way and writes what rank 0 saw."""
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    if not disk_io.is_built():
        disk_io.use()
    world = connect(timedelta(minutes=3))
    ranks = Ranks(data, folder, world)
    begun = {way: ranks.begin(way) for way in (*WAYS, "memory")}
    for old, new in (*((way, way) for way in WAYS), *CROSSINGS):
        begun[old].setdefault("last", {})[new] = ranks.go_on(old, new)
    if world.is_main:
        (folder / "results.json").write_text(json.dumps(begun))
    disconnect(world)


if __name__ == "__main__":
    main()
