"""Building a dataset with Ray across the nodes of a real Slurm, and training on it when it is complete."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from data_pipeline.building.build import build_dataset
from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.manifest import Manifest
from launcher import practice

pytestmark = pytest.mark.usefixtures("losing")  # the longest wait of all begins while there is work to do


@pytest.fixture(scope="module")
def source(cluster, stdlib_documents, corpus_file) -> SourceConfig:
    lines = corpus_file.read_text().splitlines(keepends=True)
    path = cluster.folder / "documents.jsonl"
    path.write_text("".join(lines[:60]))
    return SourceConfig(path=str(path))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def driver_of(run) -> list[psutil.Process]:
    """The process that asks Ray for the work."""
    config = str(run.folder / "config.yaml")
    found = [process for process in psutil.process_iter(["cmdline"]) if config in (process.info["cmdline"] or [])]
    return [process for process in found if process.info["cmdline"][1:3] == ["-P", "-m"]]


def test_a_build_on_two_nodes_gives_the_bytes_of_one_here_and_is_trained_on(
    cluster, source, tokenizer_config, ray_session
):
    here, there = (
        DataConfig(path=str(cluster.folder / name), sources=[source], validation_fraction=0.1, shard_megabytes=0.2)
        for name in ("here", "there")
    )
    profile = cluster.profile(ranks_per_node=1, cpus_per_rank=2)
    config = cluster.config("built", training={"steps": 4})
    config = config.model_copy(update={"data": there, "tokenizer": tokenizer_config})
    run = cluster.submit("built", profile, config, stage="data")
    assert not (Path(there.path) / "manifest.json").exists()

    run.until(lambda: bool(driver_of(run)))
    (driver,) = driver_of(run)
    driver.suspend()
    try:
        stranger_is_refused(driver)
    finally:
        driver.resume()
    build_dataset(here, tokenizer_config)

    assert run.wait() == "COMPLETED", run.story()
    assert run.events("ray_ready")[0]["nodes"] == 2
    assert files(Path(there.path)) == files(Path(here.path))
    assert len(Manifest.load(there.path).splits["train"]) > 3
    assert run.ends() == ["finished", "finished"]
    assert run.last_step() == 4
    assert not list((run.folder / "slurm").glob("ray-token*"))


def stranger_is_refused(driver: psutil.Process) -> None:
    """Who has not the job's token gets nothing from its Ray, even on the same network."""
    (address,) = (word.partition("=")[2] for word in driver.cmdline() if word.startswith("data.ray_address="))
    command = [
        str(practice.SCRIPT),
        "node",
        "exec",
        "node11",
        "env",
        "RAY_AUTH_MODE=token",
        "RAY_AUTH_TOKEN=" + "0" * 64,
    ]
    command += [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0, done.stdout
    assert "token" in (done.stdout + done.stderr).lower(), done.stdout + done.stderr
