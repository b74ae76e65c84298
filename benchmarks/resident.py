"""What of a process lies in memory, as the kernel counts it."""

from pathlib import Path


def resident(key: str, process: int | str = "self") -> int:
    """Bytes of a line of a process's status in /proc, such as VmRSS, now, or VmHWM, the most there ever was."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
