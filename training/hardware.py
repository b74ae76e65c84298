"""What one rank's device can do at best, and how much of it a step used.

MFU (arXiv 2204.02311, appendix B) = model.flops.train_flops(tokens, pairs) / (seconds x peak x ranks), where tokens
leave padding out and pairs are the query-key pairs that attention allows, both over the global batch.
"""

import ctypes
import functools
import os
import re
import resource
import time

import torch

from model.kernels.attention import resolve_backend
from model.kernels.ops import matmul_transposed
from training.config import RunConfig, TrainingConfig
from training.distributed import World

GPU_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "GH200": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H800 PCIe": 756.0,
    "H800": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A40": 150.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
"""Dense bf16 matrix TFLOP/s by whole words of the device's name, from the vendor's data sheets; first match counts."""

LESSER = re.compile(r"\b(Laptop|MIG|D)\b")
"""Words that say a device is less than the one whose name it bears."""


NETWORK_PREFIXES = ("NCCL_", "GLOO_", "TP_SOCKET_", "UCX_", "FI_")
"""How variables begin that nccl, gloo, torch's own sockets, UCX and libfabric read."""


def execution_facts(config: RunConfig, world: World) -> dict[str, str]:
    """What this rank computes on and with, by name, as the config's `auto` turns out here.

    Raises ValueError when the config asks for an attention backend that cannot run here.
    """
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    model = config.model
    facts = model.head_size, model.positions, model.attention_softcap
    attention = resolve_backend(model.attention_backend, world.device, dtype, *facts)
    device = str(world.device)
    if world.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(world.device)})"
    return {"device": device, "collectives": world.collectives, "attention": attention}


def network_settings() -> dict[str, str]:
    """What the environment tells the libraries that ranks talk through, by name."""
    return {name: os.environ[name] for name in sorted(os.environ) if name.startswith(NETWORK_PREFIXES)}


def peak_flops(config: TrainingConfig, device: torch.device) -> float | None:
    """Peak FLOP/s of one rank's device: what the config says, else looked up (GPU, bf16) or measured (CPU).

    None for a GPU that is not in the table, and for fp32 on GPUs, where the peak depends on the TF32 setting.
    """
    if config.peak_tflops is not None:
        return config.peak_tflops * 1e12
    if device.type == "cpu":
        return measure_matmul_flops(torch.float32 if config.precision == "fp32" else torch.bfloat16)
    return gpu_peak_flops(torch.cuda.get_device_name(device)) if config.precision == "bf16" else None


def gpu_peak_flops(name: str) -> float | None:
    """Dense bf16 FLOP/s of the GPU of this name; None when the table does not have exactly it."""
    found = (tflops * 1e12 for part, tflops in GPU_TFLOPS.items() if re.search(rf"\b{part}\b", name))
    return None if LESSER.search(name) else next(found, None)


def measure_matmul_flops(dtype: torch.dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """Best FLOP/s of square matrix products on this rank's CPU threads, tried for about `seconds`.

    Both torch's own product and the one the model computes with are tried: a peak is what the faster one reaches.
    """
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    products = (functools.partial(torch.mm, out=torch.empty_like(a)), matmul_transposed)
    best, deadline = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < deadline:
        for multiply in products:
            started = time.perf_counter()
            multiply(a, b)
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def keep_freed_memory() -> bool:
    """Tells the C library to keep the memory of freed tensors for the next ones; False where it cannot be told.

    Every step on a CPU frees and takes the same large blocks. By default each comes fresh from the kernel, which
    clears it page by page: a third of the time of small steps. Not before the first step: what is freed until then
    is of other sizes, and would be kept for nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl does not
    if mallopt is None:
        return False
    trim_threshold, mmap_max = -1, -4
    return mallopt(mmap_max, 0) == 1 and mallopt(trim_threshold, 2**31 - 1) == 1


def give_back_freed_memory() -> None:
    """Has the C library give memory of freed tensors back to the system, where it can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def memory_gb(device: torch.device) -> float:
    """Most memory this process ever held, in GB (10^9): on the GPU for tensors, on the CPU resident in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
