"""Real ranks that play two nodes, each with a disk of its own."""

import shutil

from tests.training.runs import events_of, finish, save_config, start_ranks, steps_of, tiny_config, wait_for_step
from tests.training.test_worker import exact, same_weights
from training.worker import EXIT_DONE

KEYS = {"interval_steps": 30, "local_interval_steps": 4, "local_dir": "$NODE_DISK/shardline"}


def two_nodes(folder, disks):
    """Starts a rank on each of two nodes."""

    def facts(rank: int) -> dict[str, str]:
        return {"LOCAL_RANK": "0", "NODE_DISK": str(disks / f"node-{rank}")}

    return start_ranks(folder, 2, facts=facts)


def test_a_lost_node_costs_a_local_interval_and_the_run_ends_with_the_same_bits(dataset, tmp_path):
    straight, folder, disks = tmp_path / "straight", tmp_path / "run", tmp_path / "disks"
    save_config(tiny_config(dataset, training={"steps": 40}), straight)
    save_config(tiny_config(dataset, training={"steps": 40}, checkpoint=KEYS), folder)
    plain = start_ranks(straight, 2)
    ranks = two_nodes(folder, disks)
    wait_for_step(folder, 18, ranks)
    for rank in ranks:
        rank.kill()
    finish(ranks)
    reached = steps_of(folder)[-1]["step"]
    shutil.rmtree(disks / "node-1")
    assert [code for code, _ in finish(two_nodes(folder, disks))] == [EXIT_DONE] * 2
    assert [code for code, _ in finish(plain)] == [EXIT_DONE] * 2
    (promoted,), (resumed,) = events_of(folder, "promoted"), events_of(folder, "resume")
    assert promoted["step"] == resumed["step"] >= min(reached, 28) - 2 * KEYS["local_interval_steps"]
    assert exact(folder) == exact(straight)
    assert same_weights(folder, straight)
