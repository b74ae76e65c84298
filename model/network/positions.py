"""How a model knows where a token stands in its document: rotary frequencies and tables of biases.

Nothing here is a buffer: what follows from the config is computed where it is used, so a model made
on the meta device needs no more than its weights.
"""

import math

import torch

from model.config import ModelConfig, RopeScaling
from model.kernels.bias import Alibi, AttentionBias, RelativeBias, alibi_slopes
from model.network.context_ranks import ContextRanks
from model.network.layers import Initializer, Layer
from model.network.tensor_ranks import Division, TensorRanks


def rope_frequencies(config: ModelConfig, device: torch.device | str, sliding: bool = False) -> torch.Tensor:
    """Radians per token of each pair of rotary dims, fp32 [R/2]: the numbers that Hugging Face computes.

    `sliding` asks for those of layers that slide, where they have a base of their own.
    """
    own = config.sliding_rope_theta if sliding else None
    exponent = torch.arange(0, config.rotary_dim, 2, device=device, dtype=torch.float32) / config.rotary_dim
    frequencies = 1.0 / (config.rope_theta if own is None else own) ** exponent
    scaling = config.rope_scaling if own is None else None
    if scaling is None:
        return frequencies
    return frequencies / scaling.factor if scaling.kind == "linear" else _llama3(frequencies, scaling)


def _llama3(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Llama 3.1: slow waves are stretched, fast ones stay, between them the share that stays grows linearly."""
    turns = scaling.original_max_positions / (2 * math.pi / frequencies)
    stays = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    stays = stays.clamp(0.0, 1.0)
    return (1 - stays) * frequencies / scaling.factor + stays * frequencies


class RelativeBiasTable(Layer):
    """T5's biases of scores by bucket of distance and head, this rank's heads: of all layers of a stack, or of one."""

    def __init__(self, config: ModelConfig, init: Initializer):
        super().__init__(init.ranks)
        first = init.normal(config.t5_num_buckets, config.num_heads, std=config.init_std)
        self.weight = self.own("weight", first, Division(1, (config.num_heads,)))

    def forward(self) -> torch.Tensor:
        """[num_buckets, H], a copy: sharded training takes the weight away again before it is used."""
        return self.weight.clone()


def relative_bias(
    table: torch.Tensor, config: ModelConfig, bidirectional: bool, context: ContextRanks | None = None
) -> RelativeBias:
    """The bias of a table [num_buckets, H], for the heads that this rank has where ranks share rows."""
    weight = table if context is None else table.chunk(context.size, 1)[context.rank]
    return RelativeBias(weight, bidirectional, config.t5_max_distance)


def score_bias(
    config: ModelConfig,
    table: RelativeBiasTable | None,
    bidirectional: bool,
    device: torch.device,
    ranks: TensorRanks | None = None,
    context: ContextRanks | None = None,
) -> AttentionBias | None:
    """What self-attention of a stack adds to the scores of this rank's heads; `table` is the stack's, where it has one.

    Nothing where layers have tables of their own.
    """
    if table is not None:
        return relative_bias(table(), config, bidirectional, context)
    if config.positions != "alibi":
        return None
    slopes = alibi_slopes(config.num_heads)
    for shared in (ranks, context):
        slopes = slopes if shared is None else slopes.chunk(shared.size)[shared.rank]
    return Alibi(slopes.to(device))
