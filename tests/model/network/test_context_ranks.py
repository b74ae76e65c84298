"""Rows that ranks share, in fp64: the parts' losses and gradients add up to those of whole rows, for every shape."""

import pytest
import torch

from model.config import ModelConfig
from model.kernels.attention import AttentionPattern
from model.network import blocks
from model.network.layers import divisions
from model.network.transformer import Transformer
from tests.model.network.test_tensor_ranks import MODELS, SIZES, VOCAB, loss_of, train_once
from tests.model.network.thread_ranks import Meeting, ThreadContext, ThreadRanks, on_tensor_ranks


def train_part(name: str, rank: int, meeting: Meeting, size: int, ranks: ThreadRanks | None = None):
    """Loss and gradients of a rank's rows, and how its layers are cut."""
    context = ThreadContext(rank, size, meeting)
    model = Transformer(ModelConfig(**SIZES | {"shape": "causal"} | MODELS[name]), VOCAB, 3, ranks, context).double()
    loss = loss_of(model)
    loss.backward()
    weights = dict(model.named_parameters())
    return loss.item(), {key: weight.grad for key, weight in weights.items()}, divisions(model)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_parts_of_rows_add_up_to_the_whole(name, size):
    loss, gradients, *_ = train_once(name, None)
    meeting = Meeting(size)
    parts = on_tensor_ranks(size, False, lambda ranks: train_part(name, ranks.rank, meeting, size))
    assert sum(part[0] for part in parts) == pytest.approx(loss, rel=1e-12)
    for key, whole in gradients.items():
        total = torch.stack([torch.zeros_like(whole) if part[1][key] is None else part[1][key] for part in parts]).sum(
            0
        )
        torch.testing.assert_close(total, whole, rtol=1e-9, atol=1e-11, msg=lambda m: f"{key}: {m}")


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_rows_and_layers_are_shared_at_once(name, sequence):
    """Four ranks: rank = 2 x context + tensor."""
    loss, gradients, *_ = train_once(name, None)
    rows, layers = [Meeting(2), Meeting(2)], [Meeting(2), Meeting(2)]

    def run(ranks: ThreadRanks):
        context, tensor = divmod(ranks.rank, 2)
        own = ThreadRanks(tensor, 2, sequence, layers[context])
        return train_part(name, context, rows[tensor], 2, own)

    parts = on_tensor_ranks(4, False, run)
    for tensor in range(2):
        first, second = parts[tensor], parts[2 + tensor]
        assert first[0] + second[0] == pytest.approx(loss, rel=1e-12)
        for key, whole in gradients.items():
            expected = first[2][key].of(whole, tensor, 2) if key in first[2] else whole
            torch.testing.assert_close(first[1][key] + second[1][key], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["prefix, learned, parallel", "encoder, alibi", "encdec, t5 bias, tied"])
def test_an_exchange_that_forgets_the_pattern_would_show(name, monkeypatch):
    """As DeepSpeed's class for this does, which has no place for one."""
    loss, *_ = train_once(name, None)
    sound = blocks.attend

    def causal(q, k, v, pattern, backend, *rest):
        lengths = [document.num_queries for document in pattern.documents]
        square = q.shape[0] == k.shape[0]
        return sound(q, k, v, AttentionPattern.causal(lengths) if square else pattern, backend, *rest)

    monkeypatch.setattr(blocks, "attend", causal)
    meeting = Meeting(2)
    parts = on_tensor_ranks(2, False, lambda ranks: train_part(name, ranks.rank, meeting, 2))
    assert abs(sum(part[0] for part in parts) - loss) > 1e-6 * loss
