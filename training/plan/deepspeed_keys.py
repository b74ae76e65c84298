"""What a run's DeepSpeed keys say of ZeRO's memory, with DeepSpeed's own value where neither it nor we set one."""

from typing import Any, NamedTuple

from training.config import RunConfig
from training.deepspeed_config import deepspeed_config

MOST_LIVE = 1_000_000_000
KEPT_WHOLE = 100_000
MOST_KEPT = 2**63 - 1
BUCKET = 500_000_000
SUB_GROUP = 1_000_000_000
"""DeepSpeed's own stage3_max_live_parameters, stage3_param_persistence_threshold, stage3_model_persistence_threshold,
reduce_bucket_size and sub_group_size."""


class ZeroKeys(NamedTuple):
    """Keys of `zero_optimization`."""

    bucket: int
    """Elements of gradients that are reduced together."""
    overlaps: bool
    """Whether gradients are reduced while others are computed, from two buckets."""
    stages: bool
    """Whether gradients are copied into buckets, one behind another."""
    most_live: int
    """Elements of weights that stage 3 keeps gathered."""
    kept_whole: int
    """Elements of the largest weight that stage 3 never cuts."""
    most_kept: int
    """Elements of all of those."""
    sub_group: int
    """Elements of weights that stage 3 updates at once."""
    copies_near: int
    """Neighbours that keep a copy of the weights between them at stage 3; 1 where nobody does."""
    optimizer_on: str
    """Where master weights and moments are: device, cpu or nvme."""
    weights_on: str
    """Where stage 3 has its part of the weights, likewise."""

    @property
    def offloads_optimizer(self) -> bool:
        """Whether they are not on the device."""
        return self.optimizer_on != "device"


def keys_of(run: RunConfig, data_ranks: int, device: str) -> ZeroKeys:
    """Those of a run on so many data ranks of a kind of device, cuda or cpu."""
    zero = deepspeed_config(run, data_ranks, device)["zero_optimization"]
    optimizer_on = _place(zero, "offload_optimizer")
    return ZeroKeys(
        bucket=int(zero.get("reduce_bucket_size", BUCKET)),
        overlaps=bool(zero.get("overlap_comm")),
        stages=bool(zero.get("contiguous_gradients", True)) or optimizer_on != "device",
        most_live=int(zero.get("stage3_max_live_parameters", MOST_LIVE)),
        kept_whole=int(zero.get("stage3_param_persistence_threshold", KEPT_WHOLE)),
        most_kept=int(zero.get("stage3_model_persistence_threshold", MOST_KEPT)),
        sub_group=int(zero.get("sub_group_size", SUB_GROUP)),
        copies_near=int(zero.get("zero_hpz_partition_size", 1)),
        optimizer_on=optimizer_on,
        weights_on=_place(zero, "offload_param"),
    )


def _place(zero: dict[str, Any], key: str) -> str:
    found: str = zero.get(key, {}).get("device", "none")
    return "device" if found == "none" else found
