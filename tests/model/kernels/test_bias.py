import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from model.config import ModelConfig
from model.kernels.bias import Alibi, RelativeBias, alibi_slopes, relative_buckets

DISTANCES = torch.arange(-3000, 3001)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (16, 64), (8, 20), (64, 1024), (4, 16), (32, 20)])
def test_buckets_are_those_of_hugging_face(bidirectional, num_buckets, max_distance):
    ours = relative_buckets(DISTANCES, bidirectional, num_buckets, max_distance)
    theirs = T5Attention._relative_position_bucket(DISTANCES, bidirectional, num_buckets, max_distance)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_bias_is_that_of_hugging_face(bidirectional):
    config = T5Config(d_model=8, d_kv=4, num_heads=2, is_decoder=not bidirectional)
    theirs = T5Attention(config, has_relative_attention_bias=True)
    torch.nn.init.normal_(theirs.relative_attention_bias.weight)
    ours = RelativeBias(theirs.relative_attention_bias.weight, bidirectional, config.relative_attention_max_distance)
    distances = torch.arange(40)[None, :] - torch.arange(30)[:, None]
    assert torch.equal(ours.values(distances), theirs.compute_bias(30, 40)[0])


@pytest.mark.parametrize("num_heads", [1, 2, 3, 8, 12, 16, 20, 112])
def test_slopes_are_those_of_hugging_face(num_heads):
    theirs = build_alibi_tensor(torch.ones(1, 2), num_heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(num_heads), theirs, atol=0.0, rtol=1e-6)


def test_eight_heads_have_the_slopes_of_the_paper():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]


def test_alibi_grows_with_the_distance_to_either_side():
    values = Alibi(torch.tensor([0.5, 2.0])).values(torch.tensor([[-2, 0, 3]]))
    assert values.tolist() == [[[-1.0, 0.0, -1.5]], [[-4.0, 0.0, -6.0]]]


def test_the_weight_of_a_relative_bias_learns_from_each_distance():
    weight = torch.zeros(8, 1, requires_grad=True)
    RelativeBias(weight, True, 20).values(torch.tensor([0, 0, 1, -1])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [2.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def test_buckets_without_room_for_far_distances_are_refused():
    sizes = {"num_layers": 1, "d_model": 8, "num_heads": 2, "d_ff": 8, "positions": "t5_bias"}
    assert ModelConfig(**sizes, t5_num_buckets=32, t5_max_distance=17).t5_max_distance == 17
    with pytest.raises(ValueError, match="t5_max_distance: 16 leaves no far buckets; use more than half"):
        ModelConfig(**sizes, t5_num_buckets=32, t5_max_distance=16)


@pytest.mark.parametrize("backend", ["flash", "varlen"])
def test_kernels_without_a_bias_per_pair_are_refused_with_a_learned_one(backend):
    sizes = {"num_layers": 1, "d_model": 8, "num_heads": 2, "d_ff": 8, "positions": "t5_bias"}
    with pytest.raises(ValueError, match=f"attention_backend: {backend} takes no bias per pair"):
        ModelConfig(**sizes, attention_backend=backend)
