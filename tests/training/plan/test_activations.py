"""What the plan says that a forward pass leaves, against what autograd is seen to keep."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from model.config import ModelConfig
from model.network.transformer import EncoderInput, Transformer
from tests.model.packs import crossing_of, pattern_of, positions_of
from training.config import ParallelConfig
from training.plan.activations import Rows, activations

VOCAB = 512
READ = [96] * 4
CASES: dict[str, dict[str, Any]] = {
    "causal": {},
    "grouped heads": {"num_kv_heads": 4},
    "layernorm, gelu, biases": {"norm": "layernorm", "bias": True, "activation": "gelu"},
    "relu": {"activation": "relu"},
    "geglu": {"activation": "geglu"},
    "qk norm": {"qk_norm": True},
    "parallel": {"parallel_block": True},
    "two norms side by side": {"parallel_block": True, "parallel_norms": 2},
    "post": {"norm_placement": "post", "norm": "layernorm", "bias": True},
    "sandwich": {"norm_placement": "sandwich"},
    "output": {"norm_placement": "output", "qk_norm": "all_heads"},
    "windows with another rope, less one": {
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    | {"sliding_rope_theta": 100.0, "norm": "rmsnorm_1p", "qk_norm": True},
    "encdec, post": {"shape": "encdec", "norm_placement": "post", "embedding_norm": True},
    "encdec, sandwich, recomputed": {"shape": "encdec", "norm_placement": "sandwich"}
    | {"activation_checkpointing": "full"},
    "head transform": {"head_transform": True, "head_bias": True, "norm": "layernorm", "bias": True}
    | {"activation": "gelu", "segment_embeddings": 2},
    "head transform, further depths": {"head_transform": True, "multi_token_depths": 2, "logit_softcap": 30.0}
    | {"embedding_scale": 8.0},
    "learned": {"positions": "learned", "max_positions": 512},
    "gated attention": {"attention_gate": True},
    "further depths": {"multi_token_depths": 2},
    "further depths, every second recomputed": {"multi_token_depths": 2, "activation_checkpointing": "full"}
    | {"activation_checkpointing_interval": 2},
    "encdec, a further depth": {"shape": "encdec", "multi_token_depths": 1},
    "gated attention, qk norm": {"attention_gate": True, "qk_norm": True, "no_rope_layer_interval": 2},
    "encdec, gated attention": {"shape": "encdec", "attention_gate": True},
    "rope in every second layer": {"no_rope_layer_interval": 2},
    "t5 bias": {"positions": "t5_bias"},
    "t5 bias of each layer": {"positions": "t5_bias", "t5_bias_per_layer": True},
    "capped scores": {"attention_softcap": 5.0, "num_kv_heads": 4},
    "capped scores, t5 bias": {"attention_softcap": 5.0, "positions": "t5_bias"},
    "encdec, capped scores": {"shape": "encdec", "attention_softcap": 5.0},
    "embedding norm": {"embedding_norm": True},
    "encoder": {"shape": "encoder"},
    "encoder, no first norm": {"shape": "encoder", "embedding_norm": True, "first_attention_norm": False}
    | {"norm": "layernorm", "activation": "geglu_exact"},
    "encdec, no first norms": {"shape": "encdec", "embedding_norm": True, "first_attention_norm": False},
    "no first norm, attention recomputed": {"embedding_norm": True, "first_attention_norm": False}
    | {"activation_checkpointing": "attention"},
    "no first norm, every second recomputed": {"embedding_norm": True, "first_attention_norm": False}
    | {"activation_checkpointing": "full", "activation_checkpointing_interval": 2},
    "encdec": {"shape": "encdec", "num_encoder_layers": 2},
    "encdec, layernorm": {"shape": "encdec", "norm": "layernorm", "bias": True, "activation": "relu"},
    "attention recomputed": {"activation_checkpointing": "attention"},
    "recomputed": {"activation_checkpointing": "full"},
    "every second recomputed": {"activation_checkpointing": "full", "activation_checkpointing_interval": 2},
    "encdec recomputed": {"shape": "encdec", "activation_checkpointing": "full"},
}


def lengths_of(config: ModelConfig) -> list[int]:
    """Documents of a pack; one where there are biases, for on a CPU documents of one length share theirs."""
    return [128] if config.positions == "t5_bias" else [128] * 4


class Alone:
    """Ranks that share layers or rows, as far as one of them can be without the others: sizes, and what is kept."""

    def __init__(self, size: int, sequence: bool):
        self.rank, self.size, self.sequence = 0, size, sequence

    def own_rows(self, x: torch.Tensor) -> torch.Tensor:
        return x.chunk(self.size)[0] if self.sequence else x

    def summed(self, partial: torch.Tensor) -> torch.Tensor:
        return self.own_rows(partial).clone()

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat(self.size, 1) if self.sequence else x

    def shared(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def cut_rows(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return KeepsItsRows.apply(x, weight, bias, self)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x

    max = sum


class AloneInRows:
    """The same of ranks that share rows."""

    def __init__(self, size: int):
        self.rank, self.size = 0, size

    def all_rows(self, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part.chunk(self.size, 1)[0].repeat(self.size, 1, 1) for part in parts)

    def own_rows(self, x: torch.Tensor) -> torch.Tensor:
        return x.chunk(self.size)[0].repeat(1, self.size, 1)


class KeepsItsRows(torch.autograd.Function):
    """A product that keeps what it was given, not what it gathers, as megatron-core's."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, ranks: Alone
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(ranks.whole(x), weight, bias)


def kept(model: Transformer, lengths: list[int] | None = None) -> int:
    """Bytes that autograd keeps of a forward pass, weights and their likes left out, each memory once."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            found[place] = tensor
        return tensor

    draw = torch.Generator().manual_seed(0)
    lengths = lengths or lengths_of(model.config)
    tokens, read = (torch.randint(VOCAB, (sum(each),), generator=draw) for each in (lengths, READ))
    pattern = pattern_of(lengths, lengths if model.config.shape == "encoder" else [0] * len(lengths))
    encoder = None
    if model.encoder is not None:
        encoder = EncoderInput(read, positions_of(READ), pattern_of(READ, READ), crossing_of(lengths, READ))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(tokens, positions_of(lengths), pattern, tokens, 0.0, encoder)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def said(
    config: ModelConfig, parallel: ParallelConfig, width: int = 4, document: int = 128, on_gpu: bool = True
) -> int:
    """What the plan says, less the gradients that the loss makes on the way and keeps for itself.

    Of documents alike torch's kernel keeps on CPUs what those of GPUs do.
    """
    length = sum(lengths_of(config))
    rows = Rows(length, sum(READ) if config.shape == "encdec" else 0, document)
    left = activations(config, VOCAB, parallel, rows, width, on_gpu)
    gradients = width * length // parallel.context * config.d_model + left.matrix
    return left.blocks + left.ends - gradients * (1 + config.multi_token_depths)


def config_of(name: str) -> ModelConfig:
    return ModelConfig(**{"num_layers": 3, "d_model": 128, "num_heads": 8, "d_ff": 320} | CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_what_is_kept_is_what_the_plan_says(name):
    config = config_of(name)
    # rotations are kept by the arguments of what is computed again, where autograd is not asked
    close = 0.05 if "recomputed" in name else 0.002
    if "t5 bias" in name:
        close = 0.15  # the kernel of CPUs leaves out pairs that it need not look at
    assert said(config, ParallelConfig()) == pytest.approx(kept(Transformer(config, VOCAB)), rel=close)


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "causal",
        "layernorm, gelu, biases",
        "qk norm",
        "parallel",
        "encdec, gated attention",
        "head transform, further depths",
    ],
)
def test_ranks_that_share_layers_keep_what_the_plan_says(name, sequence):
    config, parallel = config_of(name), ParallelConfig(tensor=4, sequence_parallel=sequence)
    model = Transformer(config, VOCAB, ranks=Alone(4, sequence))
    assert said(config, parallel) == pytest.approx(kept(model), rel=0.01)
    if sequence:
        assert said(config, parallel) < 0.3 * said(config, ParallelConfig())


@pytest.mark.parametrize("name", ["causal", "encdec, gated attention", "layernorm, gelu, biases"])
def test_ranks_that_share_rows_keep_what_the_plan_says(name):
    config, parallel = config_of(name), ParallelConfig(context=4)
    model = Transformer(config, VOCAB, context=AloneInRows(4))
    assert said(config, parallel) == pytest.approx(kept(model), rel=0.01)


@pytest.mark.parametrize("name", ["causal", "grouped heads", "layernorm, gelu, biases", "parallel", "capped scores"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_of_cpus_keep_what_the_plan_says_of_them(name, dtype):
    """A long document beside a short one: ours has the one in fp32, torch's the other, and what they give is joined."""
    config, lengths = config_of(name), [500, 12]
    planned = said(config, ParallelConfig(), dtype.itemsize, 500, on_gpu=False)
    assert planned == pytest.approx(kept(Transformer(config, VOCAB).to(dtype), lengths), rel=0.01)
