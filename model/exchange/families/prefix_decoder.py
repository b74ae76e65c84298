"""Our decoder with a prefix of other blocks than Llama's (hf/prefix_decoder.py); transformers has no class for it."""

from typing import Any

from model.config import ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.families import classic, llama, rope, sizes
from model.exchange.families.family import GATES, PLAIN, Family, activation_names, named
from model.exchange.families.layout import Part, WeightTable, ends, linear, norm
from model.exchange.families.places import ANY, among, only

FREE = (
    "num_kv_heads",
    "head_dim",
    "bias",
    "qkv_bias",
    "attention_output_bias",
    "rope_theta",
    "rope_scaling",
    "rope_fraction",
    "max_positions",
    "segment_embeddings",
    "logit_scale",
)
FLAGS = ("embedding_norm", "parallel_block", "head_transform", "head_bias")
SAME_NAME = ("norm_placement", *FLAGS, "logit_scale")
"""Keys of ours that its config.json has under their own names."""


class PrefixDecoder(Family):
    """Norms, positions, activations and biases of many kinds."""

    architecture = Architecture("PrefixDecoderForCausalLM", "prefix_decoder", shipped="prefix_decoder.py")
    shape = "prefix"
    places = {
        **among({key: only(key, False, True) for key in FLAGS}, FREE),
        "activation": only("activation", *GATES, *PLAIN),
        "norm": only("norm", "rmsnorm", "layernorm"),
        "norm_placement": only("norm_placement", "pre", "post"),
        "positions": only("positions", "rope", "learned", "alibi", "none"),
        "qk_norm": only("qk_norm", False, True),
        "t5_num_buckets": ANY,
        "t5_max_distance": ANY,
    }
    heeds = llama.HEEDS | {*SAME_NAME, "gated", "norm_type", "layer_norm_epsilon", "position_type", "type_vocab_size"}
    heeds |= {"qkv_bias", "norm_bias", "qk_norm"}

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        return {
            **sizes.size_keys(config),
            "hidden_act": (GATES | PLAIN)[config.activation],
            "gated": config.is_gated,
            "norm_type": config.norm,
            "layer_norm_epsilon": config.norm_eps,
            "position_type": config.positions,
            "max_position_embeddings": config.max_positions or max_positions,
            "rope_parameters": None,
            "attention_bias": config.has_attention_output_bias,
            "qkv_bias": config.has_qkv_bias,
            "mlp_bias": config.bias,
            "norm_bias": config.bias,
            "qk_norm": config.qk_norm,
            "tie_word_embeddings": config.tie_embeddings,
            "use_cache": True,
            **{key: getattr(config, key) for key in SAME_NAME},
            **({"type_vocab_size": config.segment_embeddings} if config.segment_embeddings else {}),
            **(rope.rope_keys(config) if config.positions == "rope" else {}),
        }

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        is_learned = theirs.position_type == "learned"
        names = activation_names(GATES if theirs.gated else PLAIN)
        classic.must_be(theirs, norm_bias=theirs.mlp_bias)
        return {
            **(rope.rope_of(theirs.rope_parameters, partial=True) if theirs.position_type == "rope" else {}),
            "shape": self.shape,
            **sizes.sizes_of(theirs),
            "activation": named("hidden_act", theirs.hidden_act, names),
            "norm": named("norm_type", theirs.norm_type, {"rmsnorm": "rmsnorm", "layernorm": "layernorm"}),
            "norm_eps": theirs.layer_norm_epsilon,
            **llama.biases_of(theirs, theirs.qkv_bias, theirs.attention_bias),
            "qk_norm": theirs.qk_norm,
            "positions": theirs.position_type,
            "max_positions": theirs.max_position_embeddings if is_learned else None,
            "segment_embeddings": theirs.type_vocab_size or None,
            **{key: getattr(theirs, key) for key in SAME_NAME},
        }

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`."""
        width, bias = config.d_model, config.bias and config.norm == "layernorm"
        names = "model.embed_tokens.weight", "lm_head.weight"
        table, head = ends(*names, vocab_size, width, config.tie_embeddings)
        if config.max_positions is not None:
            table |= classic.position_table(config, "position_embedding.weight", "model.embed_positions.weight")
        if config.segment_embeddings is not None:
            segments = (config.segment_embeddings, width)
            table["segment_embedding.weight"] = [Part("model.embed_segments.weight", segments)]
        if config.embedding_norm:
            table |= norm("embedding_norm", "model.embed_norm", width, bias)
        for index in range(config.num_layers):
            table |= _block(config, f"blocks.{index}.", f"model.layers.{index}.", bias)
        if config.has_final_norm:
            table |= norm("norm", "model.norm", width, bias)
        if config.head_transform:
            table |= linear("head_transform.dense", [("head_transform.dense", width)], width, config.bias)
            table |= norm("head_transform.norm", "head_transform.norm", width, bias)
        return table | head | classic.head_bias(config, vocab_size, "lm_head.bias")


def _block(config: ModelConfig, ours: str, theirs: str, bias: bool) -> WeightTable:
    table = norm(f"{ours}attention_norm", f"{theirs}input_layernorm", config.d_model, bias)
    table |= llama.attention(config, f"{ours}attention.", f"{theirs}self_attn.")
    if not config.parallel_block:
        table |= norm(f"{ours}feed_forward_norm", f"{theirs}post_attention_layernorm", config.d_model, bias)
    return table | llama.feed_forward(config, f"{ours}feed_forward.", f"{theirs}mlp.")
