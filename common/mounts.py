"""What kind of file system holds a path."""

import os
from pathlib import Path


def file_system_of(path: str) -> str:
    """Kind of the file system that holds a path, as nfs4 or tmpfs; empty where the system does not tell."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return ""
    best, kind = "", ""
    for line in mounts.read_text().splitlines():
        _, point, name, *_ = line.split()
        point = point.encode().decode("unicode_escape")  # blanks stand there as \040
        if len(point) >= len(best) and os.path.commonpath([path, point]) == point:
            best, kind = point, name
    return kind
