"""Which network of this node the ranks meet on: gloo and tensorpipe want the name of one that exists here.

NCCL_SOCKET_IFNAME (a pattern of NCCL's, the same on all nodes) -> the network that leads to the other nodes, or the
first one that fits the pattern -> GLOO_SOCKET_IFNAME, TP_SOCKET_IFNAME. With more than one node never loopback, which
gloo takes where the host's name stands for 127.0.1.1.
"""

import os
import socket
from collections.abc import Mapping

import psutil

from common.mistakes import Mistake

LOOPBACK = "lo"
PATTERN = "NCCL_SOCKET_IFNAME"
NAMES = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")


def name_network(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables for this node that `environment` (of a task of srun) does not name itself.

    Raises Mistake when no network of this node fits the pattern.
    """
    num_nodes = int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or 1)
    is_first = environment.get("SLURM_NODEID", "0") == "0"
    peer = environment.get("SHARDLINE_PEER" if is_first else "MASTER_ADDR") or environment["MASTER_ADDR"]
    missing = [name for name in NAMES if not environment.get(name)]
    if not missing:
        return {}
    name = choose(addresses(), environment.get(PATTERN, ""), route_to(peer), alone=num_nodes == 1)
    return dict.fromkeys(missing, name)


def choose(networks: Mapping[str, list[str]], pattern: str, address: str, *, alone: bool) -> str:
    """The network to meet on: of those that fit the pattern the one with this address, else the first.

    `networks` maps names to addresses; `alone`: there is no other node, so that loopback does.
    """
    usable = [name for name in networks if alone or name != LOOPBACK]
    fitting = [name for name in usable if fits(name, pattern)]
    if not fitting:
        wanted = f"network_interface: '{pattern}' fits no network" if pattern else "there is no network"
        raise Mistake(f"{os.uname().nodename}: {wanted} of this node; it has {', '.join(usable) or 'none'}")
    return next((name for name in fitting if address in networks[name]), fitting[0])


def fits(name: str, pattern: str) -> bool:
    """Whether a network is meant by a pattern of NCCL's: prefixes, `=` exact names, `^` all but; empty means any."""
    without = pattern.startswith("^")
    rest = pattern.removeprefix("^")
    exact = rest.startswith("=")
    words = [word for word in rest.removeprefix("=").split(",") if word]
    if not words:
        return True
    return any(name == word if exact else name.startswith(word) for word in words) != without


def addresses() -> dict[str, list[str]]:
    """IP addresses of this machine's networks that are up, by name; those without an address are left out."""
    states = psutil.net_if_stats()
    found = {
        name: [each.address.partition("%")[0] for each in those if each.family in (socket.AF_INET, socket.AF_INET6)]
        for name, those in psutil.net_if_addrs().items()
        if name not in states or states[name].isup
    }
    return {name: those for name, those in found.items() if those}


def route_to(host: str) -> str:
    """The address this machine would reach a host from; empty when it knows no way. Nothing is sent."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            return probe.getsockname()[0].partition("%")[0]
    except OSError:
        return ""
