"""What the check of a node says, of each thing that can be wrong with one."""

import os
import subprocess
import sys
from argparse import Namespace

import pytest

from slurm import health_check
from slurm.health_check import Unfit
from slurm.meeting import Clock
from tests.training.runs import REPOSITORY, free_port

SOUND = "".join(f"{index}, 0, No\n" for index in range(8))


@pytest.mark.parametrize(
    ("listing", "words"),
    [
        ("0, 0, No\n", "1 GPUs, 8 wanted"),
        ("", "0 GPUs, 8 wanted"),
        (SOUND.replace("3, 0, No", "3, 17, No"), "GPU 3: 17 uncorrected memory errors"),
        (SOUND.replace("5, 0, No", "5, 0, Yes"), "GPU 5: pages wait to be retired"),
    ],
)
def test_a_bad_gpu_is_named(listing, words):
    with pytest.raises(Unfit, match=words):
        health_check.check_gpus(listing, 8)


def test_sound_gpus_pass_with_and_without_ecc():
    health_check.check_gpus(SOUND, 8)
    health_check.check_gpus("0, [N/A], [N/A]\n", 1)


def test_memory_disk_and_clock_have_limits(tmp_path):
    meminfo = "MemTotal: 2000000 kB\nMemAvailable: 1000000 kB\n"
    health_check.check_memory(meminfo, 1.0)
    with pytest.raises(Unfit, match=r"1\.0 GB of memory free, 2 wanted"):
        health_check.check_memory(meminfo, 2.0)
    health_check.check_disk(tmp_path / "new", 0.0)
    with pytest.raises(Unfit, match="GB free, 1e\\+09 wanted"):
        health_check.check_disk(tmp_path, 1e9)
    with pytest.raises(Unfit, match="Not a directory"):
        (tmp_path / "file").touch()
        health_check.check_disk(tmp_path / "file" / "below", 0.0)
    health_check.check_clock(Clock(ahead=-20.0, error=0.1), 30.0)
    health_check.check_clock(Clock(ahead=-100.0, error=80.0), 30.0)  # the network was too slow to tell
    with pytest.raises(Unfit, match="differs from the first node's by -100 s"):
        health_check.check_clock(Clock(ahead=-100.0, error=0.1), 30.0)


def test_a_slow_product_of_matrices_is_told_in_teraflops():
    health_check.check_matmul(0, 0.0)
    with pytest.raises(Unfit, match=r"cpu: \d+ TFLOP/s in a matrix product, 1e\+06 wanted"):
        health_check.check_matmul(0, 1e6)


def test_the_checks_come_cheap_ones_first_and_those_of_gpus_only_where_there_are_some(monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "node3")
    monkeypatch.setenv("SHARDLINE_BROKEN_NODE", "node3")
    basic = health_check._parser().parse_args(["verdicts", "--level=basic"])
    with pytest.raises(Unfit, match="said to be broken"):
        for check in health_check.checks(basic):
            check()
    more = Namespace(**{**vars(basic), "gpus": 8, "level": "full"})
    assert len(list(health_check.checks(more))) == len(list(health_check.checks(basic))) + 2


def test_one_unfit_node_is_blamed_alone_though_the_others_wait_for_it_on_the_network(tmp_path):
    port = str(free_port())
    nodes = []
    for rank, memory in enumerate(["0", "1e9"]):
        slurm = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURMD_NODENAME": f"node{rank}"}
        environment = {**os.environ, **slurm, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-P",
            "-m",
            "slurm.health_check",
            str(tmp_path),
            "--level=full",
            f"--port={port}",
            "--timeout=250",
        ]
        nodes.append(subprocess.Popen([*command, f"--min-memory-gb={memory}"], cwd=REPOSITORY, env=environment))
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    assert (tmp_path / "node0").read_text() == "ok\n"
    assert "GB of memory free, 1e+09 wanted" in (tmp_path / "node1").read_text()
