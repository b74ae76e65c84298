"""Muon on parts of matrices: the same update as on whole ones, whoever holds what."""

import collections
import itertools
import queue

import pytest
import torch

from model.config import ModelConfig
from model.network.layers import divisions, hidden_matrices
from model.network.tensor_ranks import Division
from model.network.transformer import Transformer
from tests.training.planes import in_threads
from tests.training.runs import tiny_config
from training.deepspeed_config import deepspeed_config
from training.matrices import matrices_of
from training.mesh import Mesh
from training.muon import Muon, Orthogonalizer, orthogonalized, scale
from training.optimizer import build_optimizer
from training.state.boxes import Box
from training.state.layout import Layout, replicated, sharded

KEYS = {"num_layers": 2, "d_model": 16, "num_heads": 4, "num_kv_heads": 4, "d_ff": 24}
MODELS = {
    "causal": ModelConfig(**KEYS, qkv_bias=True, head_transform=True, head_bias=True, segment_embeddings=2),
    "encdec": ModelConfig(**KEYS, shape="encdec", positions="t5_bias", tie_embeddings=True, activation="gelu"),
}
VOCAB_SIZE = 40


def momenta(model) -> dict[str, torch.Tensor]:
    """A matrix of random numbers for each hidden weight."""
    draw = torch.Generator().manual_seed(5)
    weights = dict(model.named_parameters())
    return {name: torch.randn(weights[name].shape, generator=draw) for name in hidden_matrices(model)}


def layouts_of(model, stage: int, data: int, tensor: int, gap: int = 0) -> list[Layout]:
    """Vectors and embeddings first, then hidden weights, as the optimizer orders them and ZeRO cuts them."""
    cut, hidden = divisions(model), hidden_matrices(model)
    weights = dict(model.named_parameters())
    layouts = []
    for rank in range(tensor):
        shares = {
            name: Box.of_rank(name, weight.shape, cut[name], rank, tensor)
            if name in cut and tensor > 1
            else (Box.whole(name, weight.shape),)
            for name, weight in weights.items()
        }
        vectors = [[shares[name] for name in weights if name not in hidden], [shares[name] for name in hidden]]
        if stage == 0:
            kinds = [3] * len(vectors[0]) + [2] * len(vectors[1])
            layouts.append(replicated([*vectors[0], *vectors[1]], (), kinds))
            continue
        gaps = [[gap] * (len(vector) - 1) + [0] for vector in vectors]
        totals = [sum(box.size for share in v for box in share) + gap * (len(v) - 1) for v in vectors]
        layouts.append(sharded(stage, data, vectors, [-(-t // (2 * data)) * 2 for t in totals], gaps, (), [3, 2]))
    return layouts


WAYS = [(0, 1, 1), (0, 2, 2), (1, 1, 1), (1, 2, 1), (1, 3, 1), (2, 7, 1), (1, 1, 2), (1, 3, 4), (2, 2, 2), (1, 64, 2)]


@pytest.mark.parametrize(("stage", "data", "tensor"), WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_every_element_of_every_matrix_has_its_place_and_one_owner(name, stage, data, tensor):
    model = Transformer(MODELS[name], VOCAB_SIZE)
    hidden, layouts = hidden_matrices(model), layouts_of(model, stage, data, tensor, gap=2)
    owners: dict[tuple, set[int]] = {}
    seen: dict[str, int] = {}
    for rank in range(data * tensor):
        mesh = Mesh.of(rank, data * tensor, tensor=tensor)
        for matrix in matrices_of(layouts, hidden, mesh):
            assert sum(piece.length for piece in matrix.pieces) == matrix.shape[0] * matrix.shape[1]
            if stage:
                owners.setdefault(matrix.pieces, set()).add(matrix.owner)
            held = collections.Counter()
            for piece in matrix.pieces:
                held[piece.rank] += piece.length
            assert held[matrix.owner] == max(held.values())
            seen[matrix.name] = seen.get(matrix.name, 0) + held[rank]
    assert all(len(each) == 1 for each in owners.values())
    copies = data if stage == 0 else 1
    assert seen == {name: copies * weight.numel() for name, weight in model.named_parameters() if name in hidden}


def test_queries_keys_and_values_are_matrices_by_themselves_and_embeddings_are_none():
    model = Transformer(MODELS["encdec"], VOCAB_SIZE)
    found = matrices_of(layouts_of(model, 1, 1, 1), hidden_matrices(model), Mesh.of(0, 1))
    shapes: dict[str, list[tuple[int, int]]] = {}
    for matrix in found:
        shapes.setdefault(matrix.name, []).append(matrix.shape)
    assert shapes["blocks.0.attention.qkv.weight"] == [(16, 16)] * 3
    assert shapes["blocks.0.cross_attention.kv.weight"] == [(16, 16)] * 2
    assert shapes["encoder.blocks.1.feed_forward.down.weight"] == [(16, 24)]
    assert not any("embedding" in name or "bias" in name or "head" in name for name in shapes)


def by_queues(rank: int, queues: dict[tuple[int, int], queue.Queue]):
    """How a rank that is a thread exchanges pieces with others."""

    def exchange(values, to, of, like):
        for other, pieces in to.items():
            queues[rank, other].put([values[piece].clone() for piece in pieces])
        found = {}
        for other, pieces in of.items():
            found |= zip(pieces, queues[other, rank].get(timeout=30), strict=True)
        return found

    return exchange


def vectors_of(layout: Layout, replica: int, tensors: dict[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """What a rank holds of tensors, in its flat vectors; all else is NaN."""
    vectors = {number: torch.full((length,), torch.nan) for number, length in enumerate(layout.lengths)}
    for piece in layout.slices(0 if layout.is_replicated else replica):
        if piece.box.name in tensors:
            block = tensors[piece.box.name][of_box(piece.box)].reshape(-1)
            vectors[piece.vector][piece.offset : piece.offset + piece.length] = block[piece.start :][: piece.length]
    return vectors


def of_box(box: Box) -> tuple[slice, ...]:
    return tuple(slice(first, first + extent) for first, extent in zip(box.offset, box.shape, strict=True))


@pytest.mark.parametrize(("stage", "data", "tensor"), [(1, 3, 1), (2, 2, 2), (1, 5, 2), (0, 1, 2), (1, 1, 4)])
def test_an_update_is_the_same_to_the_last_bit_however_matrices_are_cut(stage, data, tensor):
    model = Transformer(MODELS["causal"], VOCAB_SIZE)
    hidden, given = hidden_matrices(model), momenta(model)
    layouts, size = layouts_of(model, stage, data, tensor, gap=2), data * tensor
    queues = {pair: queue.Queue() for pair in itertools.product(range(size), repeat=2)}

    def on_rank(world):
        mesh = Mesh.of(world.mesh.rank, size, tensor=tensor)
        layout = layouts[mesh.tensor.rank]
        vectors = vectors_of(layout, mesh.replicas.rank, given)
        orthogonalize = Orthogonalizer(matrices_of(layouts, hidden, mesh), mesh.rank, by_queues(mesh.rank, queues))
        for piece, values, factor in list(orthogonalize(dict(vectors))):
            vectors[piece.vector][piece.offset : piece.offset + piece.length] = factor * values
        return vectors

    expected = {
        name: torch.cat([scale(m.shape) * orthogonalized(m) for m in parts], hidden[name].dim)
        for name, parts in ((name, m.split(hidden[name].sections, hidden[name].dim)) for name, m in given.items())
    }
    for rank, found in enumerate(in_threads(size, on_rank)):
        mesh = Mesh.of(rank, size, tensor=tensor)
        wanted = vectors_of(layouts[mesh.tensor.rank], mesh.replicas.rank, expected)
        for number, vector in wanted.items():
            assert torch.equal(found[number].nan_to_num(9), vector.nan_to_num(9)), (rank, number)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_steps_are_those_of_torchs_muon_to_the_last_bit(shape):
    ours, theirs = (torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1))) for _ in "ab")
    peer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    optimizer = Muon(adamw, [ours], lr=0.02, momentum=0.9, weight_decay=0.1, dtype=torch.bfloat16)
    layout = replicated([Box.whole("other", (1,)), Box.whole("matrix", shape)], (), [3, 2])
    optimizer.place(matrices_of([layout], {"matrix": Division(0, shape[:1])}, Mesh.of(0, 1)), 0)
    for step in range(4):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        peer.step()
        assert torch.equal(ours, theirs)


def test_singular_values_come_near_to_one_and_an_update_is_of_adamws_size():
    matrix = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    found = orthogonalized(matrix)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    assert (scale(found.shape) * found).square().mean().sqrt() == pytest.approx(0.2, rel=0.3)


def test_muon_says_what_it_cannot_do(tmp_path):
    with pytest.raises(ValueError, match=r"optimizer.name: muon needs whole matrices .* zero_stage 1 or 2"):
        tiny_config(tmp_path, optimizer={"name": "muon"}, training={"zero_stage": 3})
    with pytest.raises(ValueError, match="momentum: only name muon has it, this is adamw"):
        tiny_config(tmp_path, optimizer={"momentum": 0.9})
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    config = tiny_config(tmp_path, optimizer={"name": "muon"}, training={"zero_stage": 1, "deepspeed": offload})
    with pytest.raises(ValueError, match=r"offload_optimizer: optimizer.name muon multiplies matrices"):
        deepspeed_config(config, 1, "cpu")


def test_what_is_no_hidden_matrix_is_left_to_adamw(tmp_path):
    model = Transformer(MODELS["encdec"], VOCAB_SIZE)
    optimizer = build_optimizer(model, tiny_config(tmp_path, optimizer={"name": "muon"}), torch.device("cpu"))
    *adamw, hidden = optimizer.param_groups
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert {names[id(weight)] for weight in hidden["params"]} == hidden_matrices(model).keys()
    assert len(hidden["params"]) + sum(len(group["params"]) for group in adamw) == len(names)
    assert hidden["weight_decay"] > 0 and hidden["lr"] == adamw[0]["lr"]
