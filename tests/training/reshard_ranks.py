"""Run by test_resharding.py: real ranks that go on from checkpoints at other ZeRO stages and numbers of ranks.

usage: python -m tests.training.reshard_ranks DATASET FOLDER
       python -m tests.training.reshard_ranks --write-kept FIXTURE    (a fixture as this version writes it)
"""

import dataclasses
import json
import os
import shutil
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_pipeline.manifest import Manifest
from data_pipeline.reading.batches import Reading
from data_pipeline.reading.loader import Loader
from tests.training.runs import VOCAB_SIZE, free_port, tiny_config, write_dataset
from training.config import RunConfig
from training.distributed import World, connect, disconnect
from training.setup import build_engine, identify
from training.state.choosing import choose
from training.state.identity import RunIdentity, RunState, check_identity
from training.state.legacy import old_checkpoints, upgrade
from training.state.loading import load, load_weights
from training.state.saving import save
from training.step import train_step

FIRST, SECOND, LAST = 3, 6, 9
"""Steps of the first checkpoint, of the one written by another number of ranks, and of the end."""
LR = 1e-2
WAYS = {
    "0": (0, "fp32"),
    "1": (1, "fp32"),
    "2": (2, "fp32"),
    "3": (3, "fp32"),
    "1 bf16": (1, "bf16"),
    "2 plain": (2, "fp32"),
    "3 encdec": (3, "fp32"),
    "1 encdec": (1, "fp32"),
    "kept": (1, "fp32"),
    "kept 2": (2, "fp32"),
}
"""Stage and precision by name."""
CROSSINGS = [("1", "1"), ("3", "3"), ("1 bf16", "1 bf16"), ("0", "2"), ("2", "3"), ("3", "0"), ("3 encdec", "1 encdec")]
"""From which way of running to which a checkpoint goes, from two ranks to one and back."""
SPREAD = [("1", "2"), ("3", "3"), ("0", "3"), ("1 bf16", "1 bf16")]
"""The same from two ranks to four and back."""
STAGES = ("0", "1", "2", "3")
"""Ways whose checkpoints every other of them takes over and saves as they came."""


def config_of(data: Path, way: str, **optimizer: float) -> RunConfig:
    """A run of odd sizes; way 2 keeps parameters in another order, way 3 several vectors for a group."""
    stage, precision = WAYS[way]
    zero = {"2": {"round_robin_gradients": True}, "3": {"sub_group_size": 3000}}.get(way, {})
    training = {"zero_stage": stage, "precision": precision, "deepspeed": {"zero_optimization": zero}}
    training["micro_batch_size"] = 4
    if "kept" in way:
        return tiny_config(data, model=KEPT_MODEL, training=training, optimizer=optimizer)
    model = {"d_model": 30, "num_heads": 3, "num_kv_heads": 1, "d_ff": 51, "tie_embeddings": precision == "fp32"}
    if "encdec" in way:
        model |= {"shape": "encdec", "num_encoder_layers": 1, "positions": "t5_bias"}
    objective = {"name": "prefix_lm" if "encdec" in way else "next_token"}
    return tiny_config(data, model=model, training=training, optimizer=optimizer, objective=objective)


FIXTURES = Path(__file__).parent / "state" / "fixtures"
"""What earlier versions have written on two ranks: a checkpoint, its weights, and the losses of three steps more."""
KEPT_MODEL = {"num_layers": 1, "d_model": 8, "num_heads": 2, "num_kv_heads": 1, "d_ff": 12, "tie_embeddings": True}


class Ranks:
    """An engine of one way on the ranks there are, which trains, saves and goes on."""

    def __init__(self, data: Path, way: str, world: World, **optimizer: float):
        self.config, self.world = config_of(data, way, **optimizer), world
        self.engine = build_engine(self.config, VOCAB_SIZE, world)
        self.state = RunState()

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_) -> None:
        self.engine.close()

    def train(self, last: int) -> list[float]:
        """Losses of the steps up to `last`."""
        training, losses = self.config.training, []
        size = {"sequence_length": training.sequence_length, "micro_batch_size": training.micro_batch_size}
        batches = {"global_batch_size": training.global_batch_size, "samples_consumed": self.state.samples_consumed}
        place = {"rank": self.world.rank, "world_size": self.world.size, "seed": 5, "pad_id": 2}
        data = {"objective": self.config.objective, "shape": self.config.model.shape}
        path = self.config.data.path
        with Loader(Reading(path, Manifest.load(path), **data, **size, **place), **batches) as loader:
            while self.state.step < last:
                losses.append(train_step(self.engine, next(loader), LR, self.world).loss)
                self.state = RunState(self.state.step + 1, loader.samples_consumed)
        return losses

    def save(self, folder: Path) -> None:
        """Writes a checkpoint of where this run stands."""
        training = self.config.training
        identity = RunIdentity(self.world.size, training.zero_stage, training.precision, "", "", {}, {})
        save(self.engine, folder, self.state, identity, self.world)

    def load(self, folder: Path) -> "Ranks":
        """Goes on from the checkpoint of a run."""
        self.state = load(self.engine, choose(folder, self.world).checkpoint)
        return self


def begin(data: Path, folder: Path, world: World) -> dict:
    """Undisturbed runs, each with a checkpoint on the way."""
    results = {}
    for way in dict(CROSSINGS):
        with Ranks(data, way, world) as run:
            run.train(FIRST)
            run.save(folder / f"begin {way}")
            results[way] = run.train(LAST)
    return results


def go_on(data: Path, folder: Path, world: World) -> dict:
    """From each checkpoint of `begin`: saves it again as it came, then trains to the end and saves half-way."""
    results = {}
    for old, new in CROSSINGS:
        with Ranks(data, new, world).load(folder / f"begin {old}") as run:
            run.save(folder / f"same {old} {new}")
            losses = run.train(SECOND)
            run.save(folder / f"later {old} {new}")
            results[f"{old} {new}"] = losses + run.train(LAST)
    for new in STAGES:
        for old in STAGES:
            if (old, new) not in CROSSINGS:
                with Ranks(data, new, world).load(folder / f"begin {old}") as run:
                    run.save(folder / f"same {old} {new}")
    with Ranks(data, "1", world).load(folder / "begin 1") as run:
        for state in run.engine._optimizer.state.values():
            state["exp_avg"].zero_()
            state["exp_avg_sq"].zero_()
        results["without moments"] = run.train(LAST)
    return results


def spread(data: Path, folder: Path, world: World) -> dict:
    """On four ranks from what two saved: saves it again as it came, then trains to the end."""
    results = {}
    for old, new in SPREAD:
        with Ranks(data, new, world).load(folder / f"begin {old}") as run:
            run.save(folder / f"four {old} {new}")
            results[f"{old} {new}"] = run.train(LAST)
    return results


def keep(data: Path, folder: Path, world: World) -> dict:
    """From checkpoints of earlier versions, pickles converted first: losses of three steps more."""
    results = {}
    for fixture in sorted(FIXTURES.iterdir()):
        run_dir = folder / fixture.name
        shutil.copytree(fixture, run_dir)
        for old in old_checkpoints(run_dir):
            upgrade(old)
        found = choose(run_dir, world).checkpoint
        now = identify(config_of(data, "kept"), Manifest.load(data), world.size)
        now = dataclasses.replace(now, data=found.identity.data, tokenizer=found.identity.tokenizer)
        check_identity(found.identity, now, found.folder)
        with Ranks(data, "kept", world).load(run_dir) as run:
            results[fixture.name] = run.train(SECOND)
    return results


def write_kept(data: Path, folder: Path, world: World) -> dict:
    """Writes a fixture."""
    with Ranks(data, "kept 2", world) as run:
        run.train(FIRST)
        identity = identify(run.config, Manifest.load(data), world.size)
        path = save(run.engine, folder, run.state, identity, world)
        if world.is_main:
            save_file(load_weights(path), folder / "weights.safetensors")
        return run.train(SECOND)


def come_back(data: Path, folder: Path, world: World) -> dict:
    """From each checkpoint of `go_on` to the end, again on as many ranks as in the beginning."""
    results = {}
    for old, new in CROSSINGS:
        for kind in ("same", "later") if old == new else ("same",):
            with Ranks(data, old, world).load(folder / f"{kind} {old} {new}") as run:
                results[f"{kind} {old} {new}"] = run.train(LAST)
    for old, new in SPREAD:
        with Ranks(data, old, world).load(folder / f"four {old} {new}") as run:
            results[f"four {old} {new}"] = run.train(LAST)
    with Ranks(data, "2 plain", world).load(folder / "begin 2") as run:
        results["other order"] = run.train(LAST)
    for name, written in (("same ranks", "begin 1"), ("other ranks", "same 1 1")):
        with Ranks(data, "1", world, weight_decay=0.5, gradient_clipping=9).load(folder / written) as run:
            optimizer = run.engine._optimizer
            decays = [group["weight_decay"] for group in optimizer.param_groups]
            results[name] = {"weight_decay": decays, "clipping": optimizer.clip_grad}
    return results


PARTS = ((begin, 2), (go_on, 1), (spread, 4), (come_back, 2), (keep, 1))
"""What is done, and by how many ranks."""


def as_rank(rank: int, number: int, port: int, data: Path, folder: Path) -> None:
    """One rank of a part: writes what rank 0 saw."""
    part, num_ranks = PARTS[number] if number < len(PARTS) else (write_kept, 2)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    world = connect(timedelta(minutes=3))
    results = part(data, folder, world)
    if world.is_main:
        (folder / f"{part.__name__}.json").write_text(json.dumps(results))
    disconnect(world)


def main() -> None:
    """Runs the parts one after the other, each on fresh ranks; forking saves importing DeepSpeed five times."""
    if sys.argv[1] == "--write-kept":
        folder = Path(sys.argv[2])
        with tempfile.TemporaryDirectory() as name:
            arguments = (len(PARTS), free_port(), write_dataset(Path(name)), folder)
            torch.multiprocessing.start_processes(as_rank, arguments, 2, start_method="fork")
        (folder / "write_kept.json").rename(folder / "losses.json")
        return
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for number, (_, num_ranks) in enumerate(PARTS):
        arguments = (number, free_port(), data, folder)
        torch.multiprocessing.start_processes(as_rank, arguments, num_ranks, start_method="fork")


if __name__ == "__main__":
    main()
