"""GPT-J: parallel blocks with one norm, rotary pairs of neighbours in a part of each head, no biases in attention."""

import math
from typing import Any

from model.config import ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.families import classic, gpt2
from model.exchange.families.family import Family
from model.exchange.families.layout import WeightTable, ends, interleaved, norm
from model.exchange.families.places import among, only

NAMES = classic.Names(
    "ln_1", ("attn.q_proj", "attn.k_proj", "attn.v_proj"), "attn.out_proj", None, "mlp.fc_in", "mlp.fc_out"
)


class GptJ(Family):
    """GPT-J, whose rotary base is fixed."""

    architecture = Architecture("GPTJForCausalLM", "gptj")
    places = {
        **among(classic.PLACES, ("rope_fraction",)),
        "qkv_bias": only("has_qkv_bias", False),
        "attention_output_bias": only("has_attention_output_bias", False),
        "parallel_block": only("parallel_block", True),
        "head_bias": only("head_bias", True),
    }
    heeds = gpt2.HEEDS | {"rotary_dim"}
    base = "transformer."
    computed = (".attn.bias", ".attn.masked_bias", ".attn.embed_positions")

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        return gpt2.size_keys(config) | {"n_positions": max_positions, "rotary_dim": config.rotary_dim}

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        return {
            **gpt2.sizes_of(theirs),
            "qkv_bias": False,
            "attention_output_bias": False,
            "parallel_block": True,
            "rope_fraction": share_of_head(theirs.rotary_dim, theirs.n_embd // theirs.n_head),
            "head_bias": True,
        }

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`."""
        names = "transformer.wte.weight", "lm_head.weight"
        table, head = ends(*names, vocab_size, config.d_model, config.tie_embeddings)
        turned = interleaved(config.num_heads, config.head_size, config.rotary_dim)
        for index in range(config.num_layers):
            ours, theirs = f"blocks.{index}.", f"transformer.h.{index}."
            table |= classic.block(config, ours, theirs, NAMES)
            q, k, v = table[f"{ours}attention.qkv.weight"]
            table[f"{ours}attention.qkv.weight"] = [q._replace(steps=(turned,)), k._replace(steps=(turned,)), v]
        table |= norm("norm", "transformer.ln_f", config.d_model, bias=True)
        return table | head | classic.head_bias(config, vocab_size, "lm_head.bias")


def share_of_head(rotary_dim: int, head_dim: int) -> float:
    """The share of a head's dims that `ModelConfig.rotary_dim` rounds to so many, which a quotient may miss by one."""
    share = rotary_dim / head_dim
    return share if int(head_dim * share) == rotary_dim else math.nextafter(share, math.inf)
