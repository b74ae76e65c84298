"""Keys of DeepSpeed's `zero_optimization`, one by one: where each decides something, and which are not taken, and why.

DeepSpeed passes over a key in silence where it decides nothing; here that is a mistake, and so is a key under which
training would be another. `tests/training/test_zero_keys.py` holds these tables against DeepSpeed's own list, and
`test_parity.py` and `test_nvme.py` hold training under the keys against a plain loop.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from common.mistakes import Mistake, shown
from training.config import RunConfig

WHERE = "training.deepspeed.zero_optimization"


@dataclasses.dataclass(frozen=True)
class ZeroKey:
    """A key that a run may set."""

    stages: tuple[int, ...]
    """ZeRO stages at which it decides something."""
    decides: str
    """What."""
    beside: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Other keys, and the value of each without which this one decides nothing."""

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false: then what it decides is whether something is so."""
        return self.decides.startswith("whether")

    @property
    def is_section(self) -> bool:
        """Whether it has keys of its own, which offload.py knows: then what it decides is where something is."""
        return self.decides.startswith("where")

    def check(self, name: str, value: Any) -> None:
        """Mistake for a value of another type, or a number that is less than there may be."""
        least = int(name in COUNTS)
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
        expected = f"a whole number of {least} or more, such as 2_000_000"
        if self.is_switch:
            fits, expected = isinstance(value, bool), "true or false"
        if not (fits or self.is_section):
            raise Mistake(f"{WHERE}.{name}: found {shown(value)}; expected {expected}")


COUNTS = {"reduce_bucket_size", "sub_group_size", "zero_hpz_partition_size"}
"""Keys whose numbers begin at 1, those of others at 0."""
ALL, REPLICATED, CUT = (1, 2, 3), (1, 2), (3,)
"""Stages: those that cut something, those whose weights are whole on every rank, the one that cuts weights."""
COPIED = {"contiguous_gradients": True}

TAKEN = {
    "contiguous_gradients": ZeroKey(ALL, "whether gradients are copied into buckets, or sent from where they are"),
    "enable_sanity_checks": ZeroKey(CUT, "whether ranks compare what they gather and reduce"),
    "log_trace_cache_warnings": ZeroKey(CUT, "whether rank 0 says that layers come in another order than before"),
    "memory_efficient_linear": ZeroKey(CUT, "whether a compiled product keeps less for the backward pass"),
    "offload_optimizer": ZeroKey(ALL, "where master weights, moments and the sum of gradients are kept"),
    "offload_param": ZeroKey(CUT, "where weights are kept"),
    "overlap_comm": ZeroKey(ALL, "whether gradients are sent while others are made"),
    "parameter_alignment": ZeroKey(REPLICATED, "whether each weight begins at a multiple of 16 bytes"),
    "reduce_bucket_size": ZeroKey(ALL, "how many elements of gradients are sent at a time"),
    "reduce_scatter": ZeroKey(ALL, "whether a gradient goes to those who keep it, or to all", COPIED),
    "round_robin_gradients": ZeroKey(REPLICATED, "whether weights go to ranks in turn, or as they follow each other"),
    "stage3_allgather_sequential": ZeroKey(CUT, "whether weights are gathered one by one"),
    "stage3_max_live_parameters": ZeroKey(CUT, "how many elements of weights may be gathered at once"),
    "stage3_max_reuse_distance": ZeroKey(CUT, "how soon weights must be wanted again to stay gathered"),
    "stage3_model_persistence_threshold": ZeroKey(CUT, "how many elements are kept whole in all"),
    "stage3_module_granularity_threshold": ZeroKey(CUT, "from which size on a module is gathered by its parts"),
    "stage3_param_persistence_threshold": ZeroKey(CUT, "up to which size a weight is kept whole"),
    "stage3_prefetch_bucket_size": ZeroKey(
        CUT, "how many elements are gathered ahead", {"stage3_allgather_sequential": False}
    ),
    "stage3_use_all_reduce_for_fetch_params": ZeroKey(
        CUT, "whether weights are gathered by a sum", {"stage3_allgather_sequential": False}
    ),
    "sub_group_size": ZeroKey(CUT, "how many elements the optimizer updates at a time"),
    "use_multi_rank_bucket_allreduce": ZeroKey(
        REPLICATED, "whether gradients of several ranks share a bucket", COPIED | {"reduce_scatter": True}
    ),
    "zero_hpz_partition_size": ZeroKey(CUT, "how many neighbours keep a copy of the weights between them"),
}
"""Keys that a run may set, under each of which it trains as the plain loop does."""

NOTHING_LOADED = "it is about DeepSpeed's own checkpoints, which are neither written nor read here"
REFUSED = {
    "allgather_bucket_size": "with this torch DeepSpeed gathers weights in one piece whatever it says",
    "allgather_partitions": "DeepSpeed passes over it at every stage",
    "compute_grad_norm": "a step reports and checks the norm of the gradient",
    "cpu_offload": "it is called offload_optimizer now",
    "cpu_offload_param": "it is called offload_param now",
    "cpu_offload_use_pin_memory": "it is pin_memory of offload_optimizer and offload_param now",
    "elastic_checkpoint": NOTHING_LOADED,
    "ignore_unused_parameters": "no loss here leaves a weight out",
    "leaf_module": "it names classes of other models; stage3_module_granularity_threshold does it by size",
    "legacy_stage1": "DeepSpeed has no such stage any more",
    "load_from_fp32_weights": NOTHING_LOADED,
    "mics_hierarchical_params_gather": "DeepSpeed has no MiCS any more; zero_hpz_partition_size keeps weights near",
    "mics_shard_size": "DeepSpeed has no MiCS any more; zero_hpz_partition_size keeps weights near",
    "override_module_apply": "weights are made by name and never by Module.apply",
    "pipeline_loading_checkpoint": NOTHING_LOADED,
    "save_muon_momentum_buffer_in_memory": "it is for DeepSpeed's own Muon, which is not used here",
    "stage3_gather_16bit_weights_on_model_save": NOTHING_LOADED,
    "stage3_gather_fp16_weights_on_model_save": NOTHING_LOADED,
    "zenflow": "it updates weights late, which is another optimizer",
    "zero_quantized_gradients": "it rounds gradients between the ranks",
    "zero_quantized_nontrainable_weights": "it rounds weights",
    "zero_quantized_weights": "it rounds weights between the ranks",
    "zeropp_loco_param": "DeepSpeed has no such compression any more",
}
"""Keys that are not taken, and why."""

DEFAULTS = {"contiguous_gradients": True, "reduce_scatter": True, "stage3_allgather_sequential": False}
"""DeepSpeed's, of the keys that others are beside."""


def check_zero_keys(run: RunConfig, num_ranks: int) -> None:
    """Raises Mistake for a key of zero_optimization that would do nothing or another thing; `num_ranks` is of all."""
    zero, stage = run.training.deepspeed.get("zero_optimization", {}), run.training.zero_stage
    for name in zero:
        if name in REFUSED:
            raise Mistake(f"{WHERE}.{name}: not taken, {REFUSED[name]}; remove this key")
        if name not in TAKEN:
            near = difflib.get_close_matches(name, [*TAKEN, *(key.removeprefix("stage3_") for key in TAKEN)], n=1)
            hint = next((key for key in TAKEN if near and near[0] in (key, key.removeprefix("stage3_"))), "")
            meant = f"did you mean {hint}?" if hint else f"known are {', '.join(TAKEN)}"
            raise Mistake(f"{WHERE}.{name}: not a key of zero_optimization here; {meant}")
        key = TAKEN[name]
        if stage not in key.stages:
            raise Mistake(
                f"{WHERE}.{name}: it decides {key.decides}, and nothing at training.zero_stage {stage}; choose stage "
                f"{' or '.join(map(str, key.stages))}, or remove this key"
            )
        key.check(name, zero[name])
        for other, value in key.beside.items():
            if zero.get(other, DEFAULTS[other]) != value:
                raise Mistake(
                    f"{WHERE}.{name}: it decides nothing beside {other}: {shown(zero[other])}; remove one of the two"
                )
    _check_copies_among_neighbours(run, zero.get("zero_hpz_partition_size", 1), num_ranks)
    if "memory_efficient_linear" in zero and not run.model.compile:
        raise Mistake(
            f"{WHERE}.memory_efficient_linear: our products keep that little anyway, it is for compiled ones; set "
            "model.compile or remove this key"
        )


def _check_copies_among_neighbours(run: RunConfig, size: int, num_ranks: int) -> None:
    """DeepSpeed groups ranks that follow each other, who hold parts of other layers where layers are shared."""
    if size == 1:
        return
    if run.parallel.tensor > 1:
        raise Mistake(
            f"{WHERE}.zero_hpz_partition_size: DeepSpeed would keep copies among neighbours, who share layers under "
            f"parallel.tensor {run.parallel.tensor}; remove one of the two"
        )
    if num_ranks % size:
        raise Mistake(
            f"{WHERE}.zero_hpz_partition_size: groups of {size} cannot be made of {num_ranks} ranks; use a divisor of "
            "their number, such as that of a node"
        )
