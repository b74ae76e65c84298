"""One practice cluster for all tests of Slurm: sixteen nodes, up in seconds."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launcher import practice
from tests.slurm.cluster import Cluster, train_here
from tests.slurm.losses import ELASTIC, LOCAL, LOCAL_STEPS, WAYS, lose, shrink_and_grow
from tests.training.runs import REPOSITORY, write_dataset

NODES = 16


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The cluster, broken nodes and all: a test that breaks one mends it."""
    folder = tmp_path_factory.mktemp("slurm")
    before = {name: os.environ.get(name) for name in ("PRACTICE_DIR", "PYTHONPATH")}
    os.environ["PRACTICE_DIR"] = f"/tmp/practice-test.{os.getpid()}"  # short: names of sockets have 107 characters
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    here = Path.cwd()
    try:
        os.chdir(REPOSITORY)
        assert practice.up(NODES, [tmp_path_factory.getbasetemp()]) == 0, "the practice cluster did not come up"
        yield Cluster(folder, write_dataset(folder / "dataset"))
    finally:
        subprocess.run([str(practice.SCRIPT), "down"], timeout=60, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(os.environ["PRACTICE_DIR"], ignore_errors=True)
        os.chdir(here)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(scope="session")
def two_ranks_here(cluster):
    """Losses of the small run on two ranks of this machine, undisturbed."""
    return train_here(cluster.config("two-here", training={"num_processes": 2}))


@pytest.fixture(scope="session")
def reserved(cluster):
    """The cluster with nodes set apart, before anybody else is on them, for runs that are to find no others."""
    for reservation in (LOCAL, ELASTIC):
        cluster.call("scontrol", "create", "reservation", *reservation)
    return cluster


@pytest.fixture(scope="session")
def losing(reserved):
    """Four runs that lose a node each, every one in its own way: begun here, for much of it is waiting for Slurm.

    By way: the run, and a future of the node and the processes that were left on it.
    """
    profiles = {
        way: reserved.profile(ranks_per_node=1, **{"reservation": "local"} if way == "off" else {}) for way in WAYS
    }
    local = {
        "interval_steps": 150,
        "local_interval_steps": LOCAL_STEPS,
        "local_dir": f"{reserved.disks}/$SLURMD_NODENAME",
    }
    configs = {way: reserved.config(f"lost-{way}", checkpoint=local if way == "off" else {}) for way in WAYS}
    runs = {way: reserved.submit(config.name, profiles[way], config) for way, config in configs.items()}
    with ThreadPoolExecutor() as threads:
        yield {way: (run, threads.submit(lose, run, way, WAYS[way][1])) for way, run in runs.items()}


@pytest.fixture(scope="session")
def elastic(reserved):
    """A run of four nodes that goes on with two and grows again: a future of it, and how far it was at each change.

    Its four nodes are reserved for it, so that no other run comes in between.
    """
    profile = reserved.profile(ranks_per_node=1, reservation="elastic")
    run = reserved.submit("elastic", profile, nodes=4, min_nodes=2, wait="3s")
    with ThreadPoolExecutor() as threads:
        yield threads.submit(shrink_and_grow, run)
