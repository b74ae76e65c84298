"""Training on a real Slurm gives what training here gives."""

import pytest

from launcher.job_script import directive
from tests.launcher.hostile import NAMES
from tests.slurm.cluster import train_here
from tests.training.runs import REPOSITORY


def test_two_nodes_train_as_four_ranks_here_bit_for_bit_even_if_a_node_is_broken(cluster):
    keys = {"environment": {"OMP_NUM_THREADS": "1", "SHARDLINE_BROKEN_NODE": "node1"}}
    profile = cluster.profile(**keys, health={"level": "full", "min_disk_gb": 0.1, "min_memory_gb": 0.1})
    config = cluster.config("four", training={"steps": 60})
    cluster.rest()
    run = cluster.submit("four", profile, config, verify=True)
    expected = train_here(cluster.config("four-here", training={"steps": 60, "num_processes": 4}))
    assert run.wait() == "COMPLETED", run.story()
    assert [event["node"] for event in run.events("unhealthy")] == ["node1"]
    assert run.ends() == ["unhealthy", "finished"]
    assert "node1" in run.events("job_start")[0]["nodes"] or "[0-1]" in run.events("job_start")[0]["nodes"]
    assert len(run.events("start")) == 1
    assert run.events("start")[0]["world_size"] == 4
    assert run.losses() == expected
    (proof,) = (event for event in run.events("verify") if "holds" in event)
    assert proof["holds"] and proof["message"].startswith("verified on 4 ranks in ")
    log = (run.folder / "slurm" / f"train-{run.jobs[0]}.log").read_text()
    assert "second moment" in log and proof["message"] in log and "DIFFERS" not in log


PLANTED = """
import os, sys
if "slurm.rank" in sys.orig_argv and os.environ.get("SLURM_PROCID") == "1":
    import torch.distributed as dist

    def slightly_off(collective):
        def summed(tensor, *others, **how):
            work = collective(tensor, *others, **how)
            if work is not None:
                work.wait()
            if tensor.is_floating_point() and tensor.numel() > 1:
                tensor.mul_(1.001)
            return work

        return summed

    for name in ("all_reduce", "reduce", "reduce_scatter_tensor"):
        setattr(dist, name, slightly_off(getattr(dist, name)))
"""
"""Python imports a module of this name when it starts: sums that one rank gets are a thousandth too large."""


def test_ranks_of_which_one_adds_up_wrongly_are_found_and_train_nothing(cluster):
    folder = cluster.folder / "planted-fault"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(PLANTED)
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}:{REPOSITORY}"}
    run = cluster.submit("planted", cluster.profile(ranks_per_node=1, environment=environment), verify=True)
    assert run.wait() == "FAILED", run.story()
    (end,) = run.events("job_end")
    assert end["reason"] == "unverified" and "differs by" in end["message"]
    assert "nothing was trained" in end["message"] and "DIFFERS" in run.story()
    assert [event["holds"] for event in run.events("verify") if "holds" in event] == [False]
    assert not run.events("start") and not run.losses()
    exit_code = "ExitCode=2:0"
    assert exit_code in run.cluster.call("scontrol", "-o", "show", "job", str(run.jobs[0])).split()


def test_what_sbatch_would_refuse_is_told_before_anything_is_written(cluster):
    config = cluster.config("refused", training={"micro_batch_size": 1, "global_batch_size": 32})
    with pytest.raises(ValueError, match=r"sbatch would refuse the job file of stage train: .*not available"):
        cluster.submit("refused", cluster.profile(ranks_per_node=1), config, nodes=32)
    with pytest.raises(ValueError, match="invalid partition"):
        cluster.submit("refused", cluster.profile(partition="none"), config)
    assert not config.run_dir.exists()


def test_slurm_reads_the_hostile_names_of_jobs_and_comments_as_they_are(cluster, tmp_path):
    for number, name in enumerate(name for name in NAMES if name.isprintable() and len(name) < 60):
        script = tmp_path / f"{number}.sbatch"
        comment = directive("--comment", name)
        script.write_text(
            f"#!/bin/bash\n#SBATCH {directive('--job-name', name)}\n#SBATCH {comment}\n", encoding="utf-8"
        )
        job = cluster.call("sbatch", "--parsable", "--hold", "--output=/dev/null", str(script)).strip()
        told = cluster.call("squeue", "--noheader", f"--jobs={job}", "--format=%j\x1f%k\x1f")
        assert told.split("\x1f")[:2] == [name] * 2
        cluster.call("scancel", job)
