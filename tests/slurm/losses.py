"""Ways to lose a node under a run of the practice cluster."""

import shutil
import time

WAYS = {"off": ("on", 0), "crash": ("on", 1), "cut": ("heal", 0), "stop-slurmd": ("start-slurmd", 0)}
"""How a node is lost; how it comes back, and which node of the job it is (the first one holds the job's own script)."""

LOCAL_STEPS = 5
"""Steps between saves on the nodes' own disks, of the run whose node is powered off."""

LOCAL = ("ReservationName=local", "Nodes=node[9-11]", "Users=root", "StartTime=now", "Duration=60")
"""Reserves nodes for that run: what the node that is left holds is of use if the next start has it again."""

ELASTIC = ("ReservationName=elastic", "Nodes=node[12-15]", "Users=root", "StartTime=now", "Duration=60")
"""What `scontrol create` takes to reserve nodes for a run that is to find no others."""


def shrink_and_grow(run):
    """Loses one of four nodes, which stays away until the run has gone on without it; then starts the run again."""
    (job,) = run.jobs
    run.until_step(35)
    run.cluster.node("off", "node13")
    run.until_step(80, restart=1)
    run.cluster.node("on", "node13")
    run.until(lambda: "node13" in run.cluster.call("sinfo", "--noheader", "--Node", "--states=resv", "--format=%N"))
    run.cluster.call("scontrol", "requeue", str(job))
    run.wait()
    run.cluster.call("scontrol", "delete", "ReservationName=elastic")
    return run


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
    if way == "off":
        run.cluster.call("scontrol", "delete", LOCAL[0])
    return node, frozen
