"""The network that ranks meet on, by its name on each node."""

import os
import resource
import subprocess
import sys

import pytest

from common.limits import open_all_files_allowed
from slurm import network
from slurm.network import choose, fits, name_network
from tests.training.runs import REPOSITORY

NETWORKS = {"lo": ["127.0.0.1"], "docker0": ["172.17.0.1"], "eth0": ["10.0.0.5"], "ib0": ["192.168.7.5", "fe80::5"]}


def test_the_network_that_leads_to_the_others_is_taken():
    assert choose(NETWORKS, "", "10.0.0.5", alone=False) == "eth0"
    assert choose(NETWORKS, "", "fe80::5", alone=False) == "ib0"


def test_loopback_is_never_taken_with_more_than_one_node():
    assert choose(NETWORKS, "", "127.0.0.1", alone=True) == "lo"
    assert choose(NETWORKS, "^docker", "127.0.0.1", alone=False) == "eth0"
    with pytest.raises(ValueError, match="network_interface: 'lo' fits no network of this node; it has docker0, eth0"):
        choose(NETWORKS, "lo", "", alone=False)


def test_a_pattern_of_nccl_is_turned_into_the_name_of_a_network_that_is_here():
    assert choose(NETWORKS, "^docker,lo", "10.0.0.5", alone=False) == "eth0"
    assert choose(NETWORKS, "ib", "10.0.0.5", alone=False) == "ib0"
    assert choose(NETWORKS, "=eth0", "", alone=False) == "eth0"
    with pytest.raises(ValueError, match="'bond0' fits no network"):
        choose(NETWORKS, "bond0", "10.0.0.5", alone=False)


def test_patterns_are_read_as_nccl_reads_them():
    assert fits("eth0", "eth,ib")
    assert not fits("docker0", "eth,ib")
    assert fits("eth0", "^docker,lo")
    assert not fits("docker0", "^docker,lo")
    assert not fits("eth01", "=eth0")
    assert not fits("eth0", "^=eth0")
    assert fits("eth01", "^=eth0")
    assert fits("anything", "")


def test_a_node_names_its_own_network_unless_the_profile_did(monkeypatch):
    monkeypatch.setattr(network, "addresses", lambda: NETWORKS)
    monkeypatch.setattr(network, "route_to", {"node1": "192.168.7.5", "node0": "10.0.0.5"}.get)
    slurm = {"SLURM_STEP_NUM_NODES": "2", "MASTER_ADDR": "node0", "SHARDLINE_PEER": "node1"}
    first, other = {**slurm, "SLURM_NODEID": "0"}, {**slurm, "SLURM_NODEID": "1"}
    assert set(name_network(first).values()) == {"ib0"}, "the first node asks for the way to another"
    assert name_network(other) == {"GLOO_SOCKET_IFNAME": "eth0", "TP_SOCKET_IFNAME": "eth0"}
    assert name_network({**other, "NCCL_SOCKET_IFNAME": "^eth,docker"})["GLOO_SOCKET_IFNAME"] == "ib0"
    assert name_network({**other, "GLOO_SOCKET_IFNAME": "eth9", "TP_SOCKET_IFNAME": "eth9"}) == {}


def test_this_machine_has_networks_and_a_way_to_itself():
    assert "127.0.0.1" in network.addresses()["lo"]
    assert network.route_to("127.0.0.1") == "127.0.0.1"
    assert network.route_to("no-such-host.invalid") == ""


# ---- open files


def test_all_the_open_files_there_may_be_are_allowed_and_too_few_are_told():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
        assert open_all_files_allowed(2) == ""
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        told = open_all_files_allowed(hard)
        assert told.startswith(f"open files: this machine allows {hard} to a process, and {hard} peers may need")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- a rank in a folder of somebody's own files


def test_files_in_the_folder_a_job_starts_in_are_not_taken_for_modules(tmp_path):
    here, run = tmp_path / "here", tmp_path / "run"
    for name in ("model", "training", "common", "slurm", "token", "queue"):
        (here / f"{name}.py").parent.mkdir(exist_ok=True)
        (here / f"{name}.py").write_text("raise SystemExit('a file of the user was run')\n")
    (run / "logs").mkdir(parents=True)
    (run / "slurm" / "marks-7.0").mkdir(parents=True)
    numbers = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
    environment = {**os.environ, **numbers, "SHARDLINE_ATTEMPT": "7.0", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "slurm.rank", str(run)]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=180, check=False)
    said = (run / "logs" / "rank-0.log").read_text()
    assert done.returncode == 2, done.stdout + done.stderr + said
    assert "config.yaml: no such file" in said
    assert (run / "slurm" / "marks-7.0" / "mistake").exists()
