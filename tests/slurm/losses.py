"""Ways to lose a node under a run of the practice cluster."""

import shutil
import time

WAYS = {"off": ("on", 0), "crash": ("on", 1), "cut": ("heal", 0), "stop-slurmd": ("start-slurmd", 0)}
"""How a node is lost; how it comes back, and which node of the job it is (the first one holds the job's own script)."""

LOCAL_STEPS = 5
"""Steps between saves on the nodes' own disks, of the run whose node is powered off."""


def lose(run, way, index):
    """Loses a node of a run that has saved; the name of the node and the processes left on it that are still there."""
    run.until_step(35)
    node = run.nodes(run.jobs[0])[index]
    frozen = []
    if way == "stop-slurmd":  # its rank will wake up in a world that has gone on without it
        frozen = [rank for rank in run.ranks() if rank.environ()["SLURMD_NODENAME"] == node]
        for rank in frozen:
            rank.suspend()
    run.cluster.node(way, node)
    shutil.rmtree(run.cluster.disks / node, ignore_errors=True)  # with all that lay on it
    run.lost_at, run.reached = time.time(), run.last_step()
    if frozen:
        run.until_step(1, restart=1)
        for rank in frozen:
            rank.resume()
    run.wait()
    run.cluster.node(WAYS[way][0], node)
    return node, frozen
