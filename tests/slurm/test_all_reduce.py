"""The all-reduce of the health check: how many processes take part, and what is said when one does not."""

import pytest

from slurm import all_reduce
from slurm.all_reduce import Failed, over_all_nodes
from tests.training.runs import free_port


@pytest.fixture
def second_of_three(monkeypatch, tmp_path):
    """The environment of the second of three nodes; a Python that notes how it was called, and answers as told."""

    def with_answer(body: str):
        python = tmp_path / "python"
        python.write_text(f'#!/bin/bash\necho "$RANK $WORLD_SIZE $LOCAL_RANK $4" >>"{tmp_path}/calls"\n{body}\n')
        python.chmod(0o755)
        monkeypatch.setattr(all_reduce.sys, "executable", str(python))
        return tmp_path / "calls"

    for name, value in {"SLURM_PROCID": "1", "SLURM_NTASKS": "3", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    return with_answer


def test_every_gpu_of_every_node_takes_part(second_of_three):
    calls = second_of_three('echo "a warning"; echo "0.$RANK"')
    assert over_all_nodes(8, 1000, free_port(), patience=60.0) == 0.9  # of ranks 8 to 15 the slowest, 0.8 and 0.9
    assert sorted(calls.read_text().splitlines()) == sorted(f"{8 + gpu} 24 {gpu} cuda:{gpu}" for gpu in range(8))


def test_a_node_without_gpus_sends_one_process(second_of_three):
    calls = second_of_three("echo 0.5")
    assert over_all_nodes(0, 1000, free_port(), patience=60.0) == 0.5
    assert calls.read_text() == "1 3 0 cpu\n"


def test_the_gpu_that_fails_is_named_and_the_others_are_ended(second_of_three):
    second_of_three('[ "$LOCAL_RANK" = 3 ] && { echo "wrong sums"; exit 1; }; exec sleep 600')
    with pytest.raises(Failed, match="GPU 3: wrong sums"):
        over_all_nodes(8, 1000, free_port(), patience=60.0)


def test_one_that_hangs_is_waited_for_no_longer_than_the_patience(second_of_three):
    second_of_three("exec sleep 600")
    with pytest.raises(Failed, match="it hangs for 1 s"):
        over_all_nodes(2, 1000, free_port(), patience=1.0)
