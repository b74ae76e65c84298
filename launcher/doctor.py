"""Is this machine fit to train: what is installed, which kernels run, how much room there is."""

import dataclasses
import importlib.metadata
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Literal

REQUIRED = ("torch", "deepspeed", "ray", "sentencepiece", "transformers")
OPTIONAL = {
    "gigatoken": "to encode several times faster, in the clone: .venv/bin/pip install -c constraints.txt -e '.[fast]'",
    "flash-attn": "on a CUDA machine, in the clone: .venv/bin/pip install --no-build-isolation -e '.[gpu]'",
}
LEAST_FREE_GB = 5.0
LEAST_SHARED_MEMORY_GB = 0.5


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    found: str
    state: Literal["good", "optional", "bad"] = "good"
    """`bad` things keep a machine from training, `optional` ones only make it better."""
    advice: str = ""
    """What to do when it is not good."""


def examine() -> list[Finding]:
    """Looks at everything a run needs; takes some seconds, most of them importing torch."""
    return [_python(), *_packages(), *_devices(), *_kernels(), *_room(), _loopback()]


def _check(what: str, found: str, good: bool, advice: str) -> Finding:
    return Finding(what, found) if good else Finding(what, found, "bad", advice)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return _check("Python", version, sys.version_info >= (3, 11), "use Python 3.11 or newer")


def _packages() -> list[Finding]:
    required = [_package(name, "bad", f"pip install -c constraints.txt {name}") for name in REQUIRED]
    return [*required, *(_package(name, "optional", advice) for name, advice in OPTIONAL.items())]


def _package(name: str, state: Literal["optional", "bad"], advice: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "not installed", state, advice)


def _devices() -> list[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0))
    findings = [Finding("CPU cores for this process", str(cores))]
    if not torch.cuda.is_available():
        return [*findings, Finding("GPU", "none, training runs on CPU with gloo")]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        findings.append(Finding(f"GPU {index}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"))
    return findings


def _kernels() -> list[Finding]:
    import torch

    from model.kernels.attention import resolve_backend

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    findings = [Finding("attention backend auto", resolve_backend("auto", device))]
    for name in ("flash", "varlen"):
        try:
            findings.append(Finding(f"attention backend {name}", resolve_backend(name, device)))
        except ValueError as error:
            findings.append(Finding(f"attention backend {name}", "does not run here", "optional", str(error)))
    return findings


def _room() -> list[Finding]:
    findings = []
    for what, folder, least in (
        ("free disk here", Path.cwd(), LEAST_FREE_GB),
        ("free disk for temporary files", Path(tempfile.gettempdir()), LEAST_FREE_GB),
        ("free shared memory", Path("/dev/shm"), LEAST_SHARED_MEMORY_GB),
    ):
        if folder.exists():
            free = shutil.disk_usage(folder).free / 1e9
            findings.append(_check(what, f"{free:.1f} GB", free >= least, f"free some: {least:g} GB is the least"))
    return findings


def _loopback() -> Finding:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return Finding("loopback network", f"port {server.getsockname()[1]} opened")
    except OSError as error:
        return Finding("loopback network", str(error), "bad", "the ranks of one machine meet on 127.0.0.1: allow it")
