"""What an installed copy holds."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"benchmarks", "tests"}
"""Rooms that only a clone has."""


def test_every_room_is_part_of_the_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = [path.parent.relative_to(ROOT).parts for path in ROOT.glob("[a-z]*/**/__init__.py")]
    assert sorted(listed) == sorted(".".join(parts) for parts in rooms if parts[0] not in SOURCES)


def test_every_file_that_is_no_code_is_packaged_too():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for room in ("common", "configs", "data_pipeline", "launcher", "model", "slurm", "training"):
        found = {path for path in (ROOT / room).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
        packaged = {path for pattern in patterns.get(room, ()) for path in (ROOT / room).glob(pattern)}
        assert found == packaged, room
