"""A rank on a real GPU: python -m pytest -m gpu tests/training"""

import os
import subprocess
import sys

import pytest

from tests.training.runs import TIMEOUT, events_of, free_port, save_config, tiny_config

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_rank_that_is_shown_one_gpu_trains_on_it_whatever_its_number_on_the_machine(dataset, tmp_path, stage):
    training = {"steps": 4, "precision": "bf16", "zero_stage": stage}
    folder = save_config(tiny_config(dataset, training=training), tmp_path / "run")
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4", "CUDA_VISIBLE_DEVICES": "0"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "training.worker", str(folder)]
    done = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr[-3000:]
    (start,) = events_of(folder, "start")
    assert start["device"].startswith("cuda:0") and start["collectives"] == "nccl"
