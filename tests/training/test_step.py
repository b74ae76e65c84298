"""Our step on two ranks against a plain PyTorch loop in one process, on the same global batches."""

import json
import math

import pytest
import torch
from torch.nn import functional

from data_pipeline.reading.packing import PackedBatch
from model.config import ModelConfig
from model.kernels.attention import AttentionPattern
from model.network.transformer import EncoderInput, Transformer
from tests.training.runs import VOCAB_SIZE, tiny_config, torchrun
from tests.training.step_ranks import (
    EVEN_STAGES,
    LOPSIDED_STAGES,
    SHAPES,
    STEPS,
    batches_of,
    config_of,
    is_silent,
    without_targets,
)
from training.config import RunConfig
from training.distributed import World
from training.step import Patterns, count


def what_the_encoder_reads(pack: PackedBatch) -> EncoderInput | None:
    """Documents of the encoder, each read both ways, and looked at by the same document of the decoder."""
    stream = pack.encoder
    if stream is None:
        return None
    own = AttentionPattern.packed(stream.cu_seqlens, stream.cu_seqlens.diff())
    cross = AttentionPattern.cross(pack.cu_seqlens, stream.cu_seqlens)
    return EncoderInput(stream.tokens, stream.positions, own, cross)


def plain_loop(config: RunConfig, lopsided: bool = False) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step of a hand-written loop that never heard of ranks."""
    torch.set_num_threads(1)
    model = Transformer(config.model, VOCAB_SIZE, config.seed)
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    ranks = [batches_of(config, rank, 2) for rank in range(2)]
    history = []
    for step in range(1, STEPS + 1):
        packs = []
        for rank, loader in enumerate(ranks):
            silent = lopsided and is_silent(step, rank)
            packs += [without_targets(batch) if silent else batch for batch in next(loader)]
        num_targets = sum(int((pack.labels >= 0).sum()) for pack in packs)
        loss, objective = 0.0, 0.0
        for pack in packs:
            pattern = AttentionPattern.packed(pack.cu_seqlens, pack.prefix_lengths)
            logits = model(pack.tokens, pack.positions, pattern, encoder=what_the_encoder_reads(pack))
            entropy = functional.cross_entropy(logits, pack.labels, ignore_index=-100, reduction="sum")
            log_z = logits[pack.labels >= 0].logsumexp(-1)
            loss += entropy.item() / num_targets
            objective = objective + (entropy + config.training.z_loss * log_z.square().sum()) / num_targets
        objective.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        progress = (step - 3) / (STEPS - 3)
        factor = step / 3 if step < 3 else 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * factor
        optimizer.step()
        optimizer.zero_grad()
        history.append((loss, norm.item()))
    for loader in ranks:
        loader.close()
    return history


@pytest.fixture(scope="module")
def ours(dataset, tmp_path_factory) -> dict:
    """Everything two ranks of ours did, by case."""
    output = tmp_path_factory.mktemp("step") / "results.json"
    done = torchrun(2, "-m", "tests.training.step_ranks", str(dataset), str(output))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def plain(dataset) -> dict:
    """The plain loop's history, by case."""
    config = tiny_config(dataset, training={"z_loss": 1e-3})
    return {"": plain_loop(config), " lopsided": plain_loop(config, lopsided=True)}


def worst(ours: list[dict], plain: list[tuple[float, float]], field: str) -> float:
    """Largest difference over the steps."""
    assert len(ours) == len(plain) == STEPS
    return max(abs(line[field] - expected[field == "grad_norm"]) for line, expected in zip(ours, plain, strict=True))


@pytest.mark.parametrize("stage", EVEN_STAGES)
def test_stages_follow_the_plain_loop_for_twenty_steps(ours, plain, stage):
    assert worst(ours[f"zero{stage}"], plain[""], "loss") < 1e-5
    assert worst(ours[f"zero{stage}"], plain[""], "grad_norm") < 1e-5


@pytest.mark.parametrize("stage", LOPSIDED_STAGES)
def test_a_rank_without_any_target_changes_nothing(ours, plain, stage):
    lines = ours[f"zero{stage}"]
    assert all(min(line["targets"]) == 0 < max(line["targets"]) for line in lines)
    assert worst(lines, plain[" lopsided"], "loss") < 1e-5
    assert worst(lines, plain[" lopsided"], "grad_norm") < 1e-5


def test_the_ranks_hold_unequal_numbers_of_targets(ours):
    assert sum(line["targets"][0] != line["targets"][1] for line in ours["zero1"]) > STEPS // 2


def test_the_gradient_is_clipped_on_the_way(plain):
    norms = [norm for _, norm in plain[""]]
    assert max(norms) > 0.5


def test_tied_embeddings_train_sharded_as_in_the_plain_loop(ours, dataset):
    history = plain_loop(tiny_config(dataset, model={"tie_embeddings": True}))
    assert worst(ours["tied"], history, "loss") < 1e-5


def test_recomputing_activations_of_sharded_weights_changes_nothing(ours, plain):
    assert worst(ours["recomputed"], plain[""], "loss") < 1e-5
    assert worst(ours["recomputed"], plain[""], "grad_norm") < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_trains_sharded_as_in_the_plain_loop(ours, dataset, shape):
    history = plain_loop(config_of(dataset, shape))
    assert worst(ours[shape], history, "loss") < 1e-5
    assert worst(ours[shape], history, "grad_norm") < 1e-4
    assert worst(ours[f"{shape} bf16"], history, "loss") < 1e-2
    assert history[-1][0] < history[0][0] - 0.05


def test_a_loss_that_is_no_number_stops_before_any_weight_changes(ours):
    assert ours["nan"]["unchanged"]
    assert ours["nan"]["message"].startswith("step 1 (samples 0 to 15): the loss is nan (rank 1)")


def test_padding_counts_neither_as_tokens_nor_as_pairs(dataset):
    with batches_of(tiny_config(dataset), 0, 1) as loader:
        batches = next(loader)
    counts = count(batches, [Patterns.of(batch) for batch in batches], World.alone())
    lengths = []
    for batch in batches:
        lengths += batch.cu_seqlens.diff().tolist()[: batch.num_documents]
    assert counts.padding == sum(batch.num_padding for batch in batches) > 0
    assert counts.tokens == sum(lengths) == 16 * 32 - counts.padding
    assert counts.pairs == sum(length * (length + 1) // 2 for length in lengths)
    assert counts.work.num_window_pairs is None
    assert (counts.further_targets, counts.work.num_further_pairs) == (0, None)
    sizes = {"num_layers": 2, "d_model": 8, "num_heads": 2, "d_ff": 8, "multi_token_depths": 2}
    model = ModelConfig(**sizes, sliding_window=4, layer_types=["full_attention", "sliding_attention"])
    near = count(batches, [Patterns.of(batch, model) for batch in batches], World.alone())
    within = sum(min(place + 1, 4) for length in lengths for place in range(length))
    assert (near.pairs, near.work.num_window_pairs) == (counts.pairs, within)
    assert near.work.num_further_pairs == counts.pairs + within, "the first depth sees all, the second slides"
    assert near.further_targets == sum(max(length - depth, 0) for length in lengths for depth in (1, 2))
