"""The plan's bytes and operations against formulas and figures of papers (benchmarks/published.yaml)."""

from typing import NamedTuple

from benchmarks.plan_world import published
from model.config import ModelConfig
from model.flops import Work, num_matmul_parameters, train_flops
from training.config import ParallelConfig, RunConfig
from training.plan.activations import BF16, Rows, activations
from training.plan.arithmetic import recomputed_flops
from training.plan.kernels import FP32
from training.plan.memory import memory


class Line(NamedTuple):
    """A figure and ours."""

    what: str
    theirs: float
    ours: float


def zero() -> list[Line]:
    """GB of a GPU's weights, gradients and optimizer state, by ZeRO's table, gradients taken at its two bytes."""
    lines = []
    sizes = {"num_layers": 72, "d_model": 2880, "num_heads": 24, "d_ff": 11520, "activation": "gelu"}
    for billions, replicas, stage, gigabytes in published()["zero"]["rows"]:
        training = {"steps": 1, "sequence_length": 2048, "global_batch_size": replicas, "zero_stage": stage}
        run = RunConfig.model_validate(
            {"name": "run", "tokenizer": {"path": "none"}, "data": {"path": "none"}, "training": training}
            | {"model": sizes | {"tie_embeddings": True}}
        )
        said = memory(run, 32000, replicas, Rows(2048, 0, 2048))
        weights = memory(run, 32000, 1, Rows(2048, 0, 2048)).gradients.summed / FP32
        ours = (said.held - said.gradients.summed * (FP32 - BF16) / FP32) / weights
        lines.append(Line(f"{billions:g} B weights, {replicas} replicas, stage {stage}", gigabytes, ours * billions))
    return lines


def left_by_a_block() -> list[Line]:
    """Bytes that a block leaves, in units of one byte for each element of [T, M], without masks of dropout.

    Their 34 has two such masks of a byte, cut by rows where tensor ranks cut those; attention fused, so no scores.
    """
    facts = published()["activations"]
    model, lines = ModelConfig(**facts["model"]), []
    unit = facts["tokens"] * model.d_model
    for name, keys, theirs in facts["rows"]:
        parallel = ParallelConfig(**keys)
        masks = 2 / parallel.tensor if parallel.cuts_rows else 2
        left = activations(model, 51200, parallel, Rows(facts["tokens"], 0, 2048), BF16)
        lines.append(Line(name, theirs - masks, left.blocks / unit))
    return lines


def operations() -> list[Line]:
    """GPT-3's operations without attention, and TFLOP/s of a GPU that a published step time means."""
    facts = published()["operations"]
    gpt3, megatron = facts["gpt3"], facts["megatron"]
    keys = {"num_layers": gpt3["layers"], "d_model": gpt3["width"], "num_heads": gpt3["heads"], "activation": "gelu"}
    model = ModelConfig(**keys, d_ff=4 * gpt3["width"], activation_checkpointing="full")
    work = Work(2048, 2048**2)
    flops = train_flops(model, megatron["vocabulary"], work) + recomputed_flops(model, work)
    reached = flops * megatron["samples"] / megatron["seconds"] / megatron["gpus"] / 1e12
    return [
        Line("GPT-3, operations", float(gpt3["flops"]), 6.0 * num_matmul_parameters(model, 50257) * gpt3["tokens"]),
        Line("GPT-3 on 1,024 A100, TFLOP/s of each at 32 s a step", megatron["tflops"], reached),
    ]
