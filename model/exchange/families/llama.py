"""Llama and its kin: pre-norm blocks of RMSNorm, rotary positions, grouped heads and a gated feed-forward layer.

Llama        attention's maps have biases or not, and so have the others
Qwen2        queries, keys and values alone have biases; read but not written, for transformers gives that type its
             own tokenizer, whatever the folder says
Qwen3        norms of queries and keys, layers that slide
SeedOss      biases of queries, keys and values, of attention's output and of the rest are three things; any number of
             heads
Mistral      all layers slide and nothing has a bias
SmolLM3      only some layers slide or have positions, or all slide and there are biases
PrefixLlama  Llama with a prefix (hf/prefix_llama.py)
EuroBERT     Llama that sees both ways
"""

from typing import Any, ClassVar

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.architectures import MASKED, Architecture
from model.exchange.families import rope, sizes
from model.exchange.families.family import GATES, PLAIN, Family, activation_names, named
from model.exchange.families.layers import kinds_of_layers, rope_interval, window_and_kinds
from model.exchange.families.layout import WeightTable, ends, linear, norm
from model.exchange.families.places import (
    ALL_OR_NONE_SLIDE,
    ALL_SLIDE,
    ANY,
    ATTENTION_ALIKE,
    DIVISOR,
    Places,
    among,
    only,
)

PLACES = among({"activation": only("activation", *GATES)}, ("num_kv_heads", "head_dim", "rope_theta", "rope_scaling"))
HEEDS = sizes.HEEDS | {
    "rms_norm_eps",
    "attention_bias",
    "mlp_bias",
    "use_sliding_window",
}
ATTENTION_BIASES = {"qkv_bias": ANY, "attention_output_bias": ATTENTION_ALIKE}
WINDOWS = frozenset({"sliding_window", "max_window_layers", "layer_types"})


class Llama(Family):
    """The first of them, and what the others share."""

    architecture = Architecture("LlamaForCausalLM", "llama")
    places: ClassVar[Places] = {**PLACES, **ATTENTION_BIASES, "num_heads": DIVISOR, "bias": ANY}
    heeds = HEEDS
    base = "model."
    activations: ClassVar[dict[str, str]] = GATES

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        return llama_keys(config, max_positions) | {"hidden_act": self.activations[config.activation]}

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        sizes = llama_sizes(theirs) | rope.rope_of(theirs.rope_parameters, "rope_fraction" in self.places)
        activation = named("hidden_act", theirs.hidden_act, activation_names(self.activations))
        return sizes | {"shape": self.shape, "activation": activation} | self._layers(theirs) | self._biases(theirs)

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`."""
        names = "model.embed_tokens.weight", "lm_head.weight"
        embedding, head = ends(*names, vocab_size, config.d_model, config.tie_embeddings)
        return embedding | self._stack(config) | head

    def _stack(self, config: ModelConfig) -> WeightTable:
        """Blocks and the norm behind them."""
        return stack(config, config.num_layers, "", "model.")

    def _layers(self, theirs: Any) -> dict[str, Any]:
        """Keys that make layers differ."""
        if getattr(theirs, "use_sliding_window", False):
            raise Mistake(
                "config.json: use_sliding_window true has no place here for this class; only full attention has"
            )
        return {}

    def _biases(self, theirs: Any) -> dict[str, Any]:
        """Keys of biases."""
        return biases_of(theirs, theirs.attention_bias, theirs.attention_bias)


class PrefixLlama(Llama):
    """The same with another pattern."""

    architecture = Architecture("PrefixLlamaForCausalLM", "prefix_llama", shipped="prefix_llama.py")
    shape = "prefix"


class EuroBert(Llama):
    """The same seeing both ways; its head would have a bias too."""

    architecture = Architecture("EuroBertForMaskedLM", "eurobert", MASKED)
    shape = "encoder"
    places = {**PLACES, **ATTENTION_BIASES, "num_heads": DIVISOR}

    def _biases(self, theirs: Any) -> dict[str, Any]:
        if theirs.mlp_bias:
            raise Mistake("config.json: mlp_bias true gives the head a bias, which has no place here")
        return super()._biases(theirs)


class Qwen2(Llama):
    """Read only."""

    architecture = Architecture("Qwen2ForCausalLM", "qwen2")
    is_written = False
    places = {**PLACES, "qkv_bias": only("has_qkv_bias", True)}
    heeds = HEEDS | WINDOWS

    def _layers(self, theirs: Any) -> dict[str, Any]:
        return window_and_kinds(theirs)

    def _biases(self, theirs: Any) -> dict[str, Any]:
        return {"qkv_bias": True}


class Qwen3(Qwen2):
    """With norms of queries and keys."""

    architecture = Architecture("Qwen3ForCausalLM", "qwen3")
    is_written = True
    places = {**among(PLACES, ("sliding_window", "layer_types")), "qk_norm": only("qk_norm", True)}

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        return super().keys(config, max_positions) | window_keys(config)

    def _biases(self, theirs: Any) -> dict[str, Any]:
        if theirs.attention_bias:
            raise Mistake("config.json: attention_bias true has no place beside Qwen3's norms of queries and keys here")
        return {"qk_norm": True}


class SeedOss(Llama):
    """Biases of its own for queries, keys and values."""

    architecture = Architecture("SeedOssForCausalLM", "seed_oss")
    places = among(PLACES, ("bias", "qkv_bias", "attention_output_bias"))
    heeds = HEEDS | {"attention_out_bias"}

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        own = {"attention_out_bias": config.has_attention_output_bias, "residual_dropout": 0.0}
        return super().keys(config, max_positions) | own

    def _biases(self, theirs: Any) -> dict[str, Any]:
        return biases_of(theirs, theirs.attention_bias, theirs.attention_out_bias)


class Mistral(Llama):
    """All layers slide."""

    architecture = Architecture("MistralForCausalLM", "mistral")
    places = {**PLACES, "sliding_window": ALL_SLIDE, "layer_types": ANY}
    heeds = HEEDS | {"sliding_window"}

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        return super().keys(config, max_positions) | {"sliding_window": config.sliding_window}

    def _layers(self, theirs: Any) -> dict[str, Any]:
        return {"sliding_window": theirs.sliding_window}

    def _biases(self, theirs: Any) -> dict[str, Any]:
        return {}


class SmolLM3(Llama):
    """Layers may slide or be without positions."""

    architecture = Architecture("SmolLM3ForCausalLM", "smollm3")
    places = {
        **among(PLACES, ("bias", "sliding_window", "layer_types", "no_rope_layer_interval")),
        **ATTENTION_BIASES,
    }
    heeds = HEEDS | WINDOWS | {"no_rope_layers", "no_rope_layer_interval"}

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        rotates = [int(config.rotates(index)) for index in range(config.num_layers)]
        return super().keys(config, max_positions) | {"no_rope_layers": rotates} | window_keys(config)

    def _layers(self, theirs: Any) -> dict[str, Any]:
        return window_and_kinds(theirs) | rope_interval(theirs)


class Arcee(Llama):
    """No gates."""

    architecture = Architecture("ArceeForCausalLM", "arcee")
    places = {**Llama.places, "activation": only("activation", *PLAIN)}
    activations = PLAIN


class Phi3(Llama):
    """Its fused maps lie as ours do."""

    architecture = Architecture("Phi3ForCausalLM", "phi3")
    places = {
        **among({key: PLACES[key] for key in PLACES if key != "rope_scaling"}, ("rope_fraction", "layer_types")),
        "sliding_window": ALL_OR_NONE_SLIDE,
    }
    heeds = HEEDS | {"sliding_window", "original_max_position_embeddings"}

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        return super().keys(config, max_positions) | {
            "original_max_position_embeddings": max_positions,
            "partial_rotary_factor": config.rope_fraction,
            "sliding_window": config.sliding_window,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
        }

    def _layers(self, theirs: Any) -> dict[str, Any]:
        return {"sliding_window": theirs.sliding_window}

    def _biases(self, theirs: Any) -> dict[str, Any]:
        return {}

    def _stack(self, config: ModelConfig) -> WeightTable:
        width, inner, query = config.d_model, config.d_ff, config.num_heads * config.head_size
        rows, table = query + 2 * config.kv_heads * config.head_size, super()._stack(config)
        for index in range(config.num_layers):
            ours, theirs = f"blocks.{index}.", f"model.layers.{index}."
            table |= linear(f"{ours}attention.qkv", [(f"{theirs}self_attn.qkv_proj", rows)], width, False)
            table |= linear(f"{ours}feed_forward.gate_up", [(f"{theirs}mlp.gate_up_proj", 2 * inner)], width, False)
        return table


def llama_keys(config: ModelConfig, max_positions: int) -> dict[str, Any]:
    """Their sizes and biases."""
    return {
        **sizes.size_keys(config),
        "max_position_embeddings": max_positions,
        "rms_norm_eps": config.norm_eps,
        **rope.rope_keys(config),
        "attention_bias": config.has_qkv_bias,
        "mlp_bias": config.bias,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }


def window_keys(config: ModelConfig) -> dict[str, Any]:
    """Which layers slide, and how far."""
    keys = {"use_sliding_window": config.sliding_window is not None, "sliding_window": config.sliding_window}
    return keys if config.sliding_window is None else keys | {"layer_types": kinds_of_layers(config)}


def llama_sizes(theirs: Any) -> dict[str, Any]:
    """Our sizes."""
    return sizes.sizes_of(theirs) | {"norm_eps": theirs.rms_norm_eps}


def biases_of(theirs: Any, qkv: bool, output: bool) -> dict[str, Any]:
    """Our keys where queries, keys and values, the output of attention and all other maps may differ."""
    own = {"qkv_bias": qkv, "attention_output_bias": output}
    return {"bias": theirs.mlp_bias} | {key: value for key, value in own.items() if value != theirs.mlp_bias}


def stack(config: ModelConfig, num_layers: int, ours: str, theirs: str, cross: bool = False) -> WeightTable:
    """Blocks of one side and the norm behind them."""
    table: WeightTable = {}
    for index in range(num_layers):
        table |= _block(config, f"{ours}blocks.{index}.", f"{theirs}layers.{index}.", cross)
    return table | norm(f"{ours}norm", f"{theirs}norm", config.d_model)


NORMS = {
    "pre": {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"},
    "output": {
        "attention_output_norm": "post_attention_layernorm",
        "feed_forward_output_norm": "post_feedforward_layernorm",
    },
    "sandwich": {
        "attention_norm": "input_layernorm",
        "attention_output_norm": "post_attention_layernorm",
        "feed_forward_norm": "pre_feedforward_layernorm",
        "feed_forward_output_norm": "post_feedforward_layernorm",
    },
}
"""Names of norms by where a block has them."""


def _block(config: ModelConfig, ours: str, theirs: str, cross: bool) -> WeightTable:
    width, other = config.d_model, f"{theirs}cross_attn."
    query, key, qkv_bias = config.num_heads * config.head_size, config.kv_heads * config.head_size, config.has_qkv_bias
    output_bias, table = config.has_attention_output_bias, WeightTable()
    for mine, name in NORMS[config.norm_placement].items():
        table |= norm(f"{ours}{mine}", f"{theirs}{name}", width)
    table |= attention(config, f"{ours}attention.", f"{theirs}self_attn.")
    if cross:
        table |= norm(f"{ours}cross_attention_norm", f"{theirs}cross_attn_layernorm", width)
        table |= linear(f"{ours}cross_attention.q", [(f"{other}q_proj", query)], width, qkv_bias)
        maps = [(f"{other}k_proj", key), (f"{other}v_proj", key)]
        table |= linear(f"{ours}cross_attention.kv", maps, width, qkv_bias)
        table |= linear(f"{ours}cross_attention.output", [(f"{other}o_proj", width)], query, output_bias)
    return table | feed_forward(config, f"{ours}feed_forward.", f"{theirs}mlp.")


def attention(config: ModelConfig, ours: str, theirs: str) -> WeightTable:
    """Queries, keys, values and output of self-attention, and norms of the first two."""
    width, query, key = config.d_model, config.num_heads * config.head_size, config.kv_heads * config.head_size
    maps = [(f"{theirs}q_proj", query), (f"{theirs}k_proj", key), (f"{theirs}v_proj", key)]
    table = linear(f"{ours}qkv", maps, width, config.has_qkv_bias)
    table |= linear(f"{ours}output", [(f"{theirs}o_proj", width)], query, config.has_attention_output_bias)
    widths = (query, key) if config.qk_norm == "all_heads" else (config.head_size,) * 2
    for name, count in zip(("q_norm", "k_norm"), widths, strict=True) if config.qk_norm else ():
        table |= norm(f"{ours}{name}", f"{theirs}{name}", count)
    return table


def feed_forward(config: ModelConfig, ours: str, theirs: str) -> WeightTable:
    """Gate, up and down."""
    width, inner, bias = config.d_model, config.d_ff, config.bias
    gate = [(f"{theirs}gate_proj", inner)] if config.is_gated else []
    name = "gate_up" if config.is_gated else "up"
    table = linear(f"{ours}{name}", [*gate, (f"{theirs}up_proj", inner)], width, bias)
    return table | linear(f"{ours}down", [(f"{theirs}down_proj", width)], inner, bias)
