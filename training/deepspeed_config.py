"""A run's config as DeepSpeed's: a pure function, for the engine, the plan and login nodes without DeepSpeed."""

from typing import Any

from common.mistakes import Mistake, shown
from training.config import RunConfig
from training.offload import PREFETCH, check_offload, nvme_paths
from training.zero_keys import TAKEN, check_zero_keys

OWNED = {
    "train_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.global_batch_size and micro_batch_size",
    "managed_gradient_accumulation": "training.global_batch_size and micro_batch_size",
    "gradient_clipping": "optimizer.gradient_clipping",
    "gradient_allreduce_op": "the loss, which is divided by the targets of the global batch",
    "gradient_predivide_factor": "the loss, which is divided by the targets of the global batch",
    "prescale_gradients": "the loss, which is divided by the targets of the global batch",
    "communication_data_type": "training.gradient_communication",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "amp": "training.precision",
    "torch_autocast": "training.precision",
    "data_types": "training.precision",
    "zero_optimization.stage": "training.zero_stage",
    "checkpoint": "checkpoint",
    "activation_checkpointing": "model.activation_checkpointing",
    "compile": "model.compile",
}
"""DeepSpeed keys that follow from ours, and from which."""

OTHERS = (
    "aio",
    "comms_logger",
    "disable_python_gc",
    "dump_state",
    "flops_profiler",
    "log_level",
    "memory_breakdown",
    "timers",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "zero_optimization",
)
"""DeepSpeed keys that a run may set itself (DeepSpeed would pass over any other in silence)."""

SECTIONS = {"aio", "comms_logger", "flops_profiler", "timers", "zero_optimization"}
"""Those of them that hold keys of their own."""


def accumulation_steps(run: RunConfig, world_size: int) -> int:
    """Micro-batches of one rank in one step. ValueError when the global batch does not divide evenly."""
    per_pass = run.training.micro_batch_size * world_size
    if run.training.global_batch_size % per_pass:
        raise Mistake(
            f"training.global_batch_size: {run.training.global_batch_size} is no multiple of micro_batch_size "
            f"{run.training.micro_batch_size} times {world_size} ranks; change one of the three"
        )
    return run.training.global_batch_size // per_pass


def deepspeed_config(run: RunConfig, world_size: int, device_type: str) -> dict[str, Any]:
    """DeepSpeed's configuration of a run, with the run's own `training.deepspeed` keys merged in.

    Raises ValueError for keys that follow from other sections of the config, and for those under which ZeRO would not
    compute what the config says; what else stands in `zero_optimization` is DeepSpeed's to judge (engine.py asks it).
    """
    training, on_cpu = run.training, device_type == "cpu"
    check_deepspeed_keys(run, world_size * run.parallel.num_sharing)
    # Stage 0 reports no gradient norm, so `Engine` clips there and has it.
    clipping = 0.0 if training.zero_stage == 0 else run.optimizer.gradient_clipping
    zero: dict[str, Any] = {"stage": training.zero_stage}
    if training.zero_stage > 0:
        # Host memory gains nothing from staging gradients in a bucket or from a second stream: it only copies more.
        # Small buckets stay in memory that the allocator has at hand; large ones are there to fill a fast network.
        own = training.deepspeed.get("zero_optimization", {})
        in_buckets = not on_cpu or any("contiguous_gradients" in TAKEN[key].beside for key in own)
        zero |= {"overlap_comm": not on_cpu, "contiguous_gradients": in_buckets}
        zero["reduce_bucket_size"] = 4_000_000 if on_cpu else 200_000_000
    if "offload_param" in nvme_paths(run):
        zero[PREFETCH] = 0
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(run, world_size),
        "gradient_clipping": clipping,
        "communication_data_type": training.gradient_communication,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},
    }
    if training.precision == "bf16":
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    _merge(config, training.deepspeed)
    return config


def check_deepspeed_keys(run: RunConfig, num_ranks: int) -> None:
    """Raises Mistake for keys of `training.deepspeed` that are not taken, or not by such a run on so many ranks."""
    _refuse_foreign_keys(run.training.deepspeed)
    check_zero_keys(run, num_ranks)
    check_offload(run)
    _refuse_matrices_on_hosts(run)


def _refuse_foreign_keys(keys: dict[str, Any], prefix: str = "") -> None:
    for name, value in keys.items():
        path = f"{prefix}{name}"
        if path in OWNED:
            raise Mistake(f"training.deepspeed.{path}: it follows from {OWNED[path]}; set that and remove this key")
        if not prefix and name not in OTHERS:
            raise Mistake(f"training.deepspeed.{name}: not a key for DeepSpeed here; known are {', '.join(OTHERS)}")
        if not prefix and isinstance(value, dict) != (name in SECTIONS):
            expected = "a section with keys" if name in SECTIONS else "a single value"
            raise Mistake(f"training.deepspeed.{name}: {shown(value)}; expected {expected}")
        if not prefix and isinstance(value, dict):
            _refuse_foreign_keys(value, f"{name}.")


def _refuse_matrices_on_hosts(run: RunConfig) -> None:
    """Muon multiplies matrices and sends them between ranks, which is the device's work."""
    offload = run.training.deepspeed.get("zero_optimization", {}).get("offload_optimizer", {})
    if run.optimizer.name == "muon" and offload.get("device", "none") != "none":
        raise Mistake(
            "training.deepspeed.zero_optimization.offload_optimizer: optimizer.name muon multiplies matrices in every "
            "step, which hosts are too slow for; remove this key or use optimizer.name adamw"
        )


def _merge(into: dict[str, Any], extra: dict[str, Any]) -> None:
    for name, value in extra.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value
