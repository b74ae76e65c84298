"""What ZeRO keeps off its device: keys of `offload_optimizer`, `offload_param` and `aio`, checked one by one.

host memory   optimizer at stages 1 to 3, weights at stage 3
NVMe          both at stage 3 (ZeRO-Infinity, arXiv 2104.07857); `aio` says how files are read and written
"""

from pathlib import Path
from typing import Any

from common.mistakes import Mistake, shown
from training.config import RunConfig
from training.zero_keys import WHERE

DEVICES = ("none", "cpu", "nvme")
ON_HOST = {"pin_memory": bool}
ON_NVME: dict[str, dict[str, type]] = {
    "offload_optimizer": {
        "nvme_path": str,
        "buffer_count": int,
        "pipeline_read": bool,
        "pipeline_write": bool,
    },
    "offload_param": {"nvme_path": str, "buffer_count": int, "buffer_size": int, "max_in_cpu": int},
}
"""Keys beside `device`, and what they hold; `ON_HOST` go with any place, `ON_NVME` with NVMe alone."""
REFUSED = {
    "cpuadam_cores_perc": "it goes with super_offload",
    "fast_init": "master weights get their first values from the seed or a checkpoint, whatever it says",
    "ratio": "it leaves a part of the state on the device, and nobody has proved that exact here",
    "super_offload": "it is for processors that share memory with their GPU, and nobody has proved it here",
    "use_gds": "it takes files past the host's memory, and nobody has proved it here",
}
"""Keys that are not taken, and why."""
AIO: dict[str, type] = {
    "block_size": int,
    "intra_op_parallelism": int,
    "overlap_events": bool,
    "queue_depth": int,
    "single_submit": bool,
}
STATES = 4
"""Vectors of a part that the optimizer updates: weights, their gradients, and AdamW's two moments."""
PREFETCH = "stage3_prefetch_bucket_size"
BUFFER_SIZE = 100_000_000
"""Elements of a buffer for weights where the run does not say: DeepSpeed's default."""
SECTOR = 4096
"""Bytes that direct access goes by."""


def nvme_paths(run: RunConfig) -> dict[str, Path]:
    """Where a run swaps to, by the section that says so."""
    zero = run.training.deepspeed.get("zero_optimization", {})
    return {name: Path(zero[name]["nvme_path"]) for name in ON_NVME if _device(zero, name) == "nvme"}


def check_offload(run: RunConfig) -> None:
    """Raises Mistake for a key of offload_optimizer, offload_param or aio that would do nothing or is not taken."""
    zero, stage = run.training.deepspeed.get("zero_optimization", {}), run.training.zero_stage
    for name in ON_NVME:
        if name in zero:
            _check_section(f"{WHERE}.{name}", name, zero[name], stage)
    if _device(zero, "offload_param") == "nvme" and zero.get(PREFETCH, 0):
        raise Mistake(
            f"{WHERE}.{PREFETCH}: {zero[PREFETCH]}; with weights on NVMe DeepSpeed fails where it reads ahead a weight "
            "that is wanted twice; set it to 0 or remove this key"
        )
    _check_aio(run.training.deepspeed.get("aio"), bool(nvme_paths(run)))


def _check_section(where: str, name: str, section: Any, stage: int) -> None:
    if not isinstance(section, dict):
        raise Mistake(f"{where}: {shown(section)}; expected a section, such as {{device: cpu}}")
    device = section.get("device", "none")
    if device not in DEVICES:
        raise Mistake(f"{where}.device: {shown(device)}; expected {', '.join(DEVICES)}")
    known: dict[str, type] = {"device": str, **ON_HOST, **ON_NVME[name]}
    _check_keys(where, section, known)
    for key in section:
        if key in ON_NVME[name] and device != "nvme":
            raise Mistake(f"{where}.{key}: it is about NVMe and device is {device}; set device to nvme or remove it")
    if device != "nvme":
        return
    if stage != 3:
        raise Mistake(
            f"{where}.device: nvme is for training.zero_stage 3, at {stage} DeepSpeed would use host memory; raise the "
            "stage or use cpu"
        )
    if not Path(section.get("nvme_path", "")).is_absolute():
        raise Mistake(
            f"{where}.nvme_path: {shown(section.get('nvme_path'))}; expected the absolute path of a folder on a local "
            "disk of every node"
        )
    for key in ("buffer_count", "buffer_size"):
        if section.get(key, 1) < 1:
            raise Mistake(f"{where}.{key}: {section[key]}; expected 1 or more")
    if name == "offload_optimizer":
        _check_buffers(where, section)


def _check_keys(where: str, section: dict[str, Any], known: dict[str, type]) -> None:
    for key, value in section.items():
        if key in REFUSED:
            raise Mistake(f"{where}.{key}: not taken, {REFUSED[key]}; remove this key")
        if key not in known:
            raise Mistake(f"{where}.{key}: not taken, known are {', '.join(known)}; remove this key")
        if type(value) is not known[key]:
            kind = {bool: "true or false", int: "a whole number", str: "a text"}[known[key]]
            raise Mistake(f"{where}.{key}: found {shown(value)}; expected {kind}")


def _check_buffers(where: str, section: dict[str, Any]) -> None:
    """A part is worked on in buffers while, in a pipeline, the next is read and the last is written."""
    pipelined = sum(section.get(key, False) for key in ("pipeline_read", "pipeline_write"))
    needed, count = STATES * (1 + pipelined), section.get("buffer_count", STATES)
    if count < needed:
        raise Mistake(
            f"{where}.buffer_count: {count} buffers are too few for {STATES} vectors of each of the {1 + pipelined} "
            f"parts in work; set it to {needed} or more"
        )


def check_buffer_size(run: RunConfig, largest: int) -> None:
    """Mistake where weights are on NVMe and a buffer is too small for the `largest` part of one, in elements."""
    section = run.training.deepspeed.get("zero_optimization", {}).get("offload_param", {})
    if section.get("device") == "nvme" and section.get("buffer_size", BUFFER_SIZE) < largest:
        raise Mistake(
            f"{WHERE}.offload_param.buffer_size: {section.get('buffer_size', BUFFER_SIZE)} elements, and a rank's part "
            f"of the largest weight has {largest}; set it to that or more"
        )


def _check_aio(section: Any, swaps: bool) -> None:
    where = "training.deepspeed.aio"
    if section is None:
        return
    _check_keys(where, section, AIO)
    if not swaps:
        raise Mistake(
            f"{where}: it is about NVMe and nothing is offloaded there; set device of offload_optimizer or "
            "offload_param to nvme, or remove this section"
        )
    for key in ("intra_op_parallelism", "queue_depth", "block_size"):
        if section.get(key, 1) < 1:
            raise Mistake(f"{where}.{key}: {section[key]}; expected 1 or more")
    if section.get("block_size", SECTOR) % SECTOR:
        raise Mistake(f"{where}.block_size: {section['block_size']} bytes; expected a multiple of {SECTOR}")


def _device(zero: dict[str, Any], name: str) -> str:
    section = zero.get(name, {})
    return section.get("device", "none") if isinstance(section, dict) else "none"
