"""T5 (v1.1 and Flan-T5 alike): pre-norm RMSNorm without biases, one table of relative biases for each stack.

T5 does not scale its scores, so queries are multiplied instead; it has as many key heads as query heads, so ours are
repeated; and its head is always written as one of its own, for what a tied one reads is scaled.
"""

from typing import Any

from model.config import ModelConfig
from model.exchange.architectures import SEQ2SEQ, Architecture
from model.exchange.families.family import Family, named
from model.exchange.families.layout import Part, Repeated, Scaled, WeightTable, ends, linear, norm, stacked
from model.exchange.families.places import among, only

ACTIVATIONS = {
    "swiglu": "gated-silu",
    "geglu": "gated-gelu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
}
THEIRS = {name: ours for ours, name in ACTIVATIONS.items()} | {
    "gelu_new": "gelu_tanh",
    "gated-gelu_new": "geglu",
    "gated-gelu_pytorch_tanh": "geglu",
}


class T5(Family):
    """T5."""

    architecture = Architecture("T5ForConditionalGeneration", "t5", SEQ2SEQ)
    shape = "encdec"
    places = {
        **among({}, ("num_kv_heads", "head_dim", "t5_num_buckets", "t5_max_distance")),
        "positions": only("positions", "t5_bias"),
        "activation": only("activation", *ACTIVATIONS),
    }
    heeds = frozenset(
        {
            "num_layers",
            "num_decoder_layers",
            "decoder_layers",
            "d_model",
            "d_kv",
            "d_ff",
            "num_heads",
            "relative_attention_num_buckets",
            "relative_attention_max_distance",
            "layer_norm_epsilon",
            "feed_forward_proj",
        }
    )
    aliases = frozenset({"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"})
    computed = ("EncDecAttention.relative_attention_bias.weight",)

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        return {
            "is_encoder_decoder": True,
            "d_model": config.d_model,
            "d_kv": config.head_size,
            "d_ff": config.d_ff,
            "num_layers": config.encoder_layers,
            "num_decoder_layers": config.num_layers,
            "decoder_layers": config.num_layers,  # by which generate() sizes its cache, or it takes the encoder's depth
            "num_heads": config.num_heads,
            "relative_attention_num_buckets": config.t5_num_buckets,
            "relative_attention_max_distance": config.t5_max_distance,
            "dropout_rate": 0.0,
            "layer_norm_epsilon": config.norm_eps,
            "feed_forward_proj": ACTIVATIONS[config.activation],
            "n_positions": max_positions,
            "tie_word_embeddings": False,
            "use_cache": True,
        }

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        return {
            "shape": self.shape,
            "positions": "t5_bias",
            "num_layers": theirs.num_decoder_layers,
            "num_encoder_layers": theirs.num_layers,
            "d_model": theirs.d_model,
            "num_heads": theirs.num_heads,
            "head_dim": theirs.d_kv,
            "d_ff": theirs.d_ff,
            "activation": named("feed_forward_proj", theirs.feed_forward_proj, THEIRS),
            "norm_eps": theirs.layer_norm_epsilon,
            "t5_num_buckets": theirs.relative_attention_num_buckets,
            "t5_max_distance": theirs.relative_attention_max_distance,
            "tie_embeddings": not self.scales_head(theirs),
        }

    def longest(self, theirs: Any) -> int | None:
        """Any length: distances beyond the last bucket are alike."""
        return None

    def scales_head(self, theirs: Any) -> bool:
        """See `Family`; its config says so by the key that ties the head."""
        return theirs.scale_decoder_outputs

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`; a tied head is written beside the embedding."""
        embedding, head = ends("shared.weight", "lm_head.weight", vocab_size, config.d_model, config.tie_embeddings)
        if config.tie_embeddings:
            embedding["embedding.weight"].append(Part("lm_head.weight", (vocab_size, config.d_model)))
        decoder = _stack(config, config.num_layers, "", "decoder.", cross=True)
        return embedding | decoder | _stack(config, config.encoder_layers, "encoder.", "encoder.", cross=False) | head


class MT5(T5):
    """mT5, which is T5 v1.1 by another type; read only."""

    architecture = Architecture("MT5ForConditionalGeneration", "mt5", SEQ2SEQ)
    is_written = False

    def scales_head(self, theirs: Any) -> bool:
        """Its class never does, whatever the config says."""
        return False


def _stack(config: ModelConfig, num_layers: int, ours: str, theirs: str, cross: bool) -> WeightTable:
    bias = f"{theirs}block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    table: WeightTable = {f"{ours}attention_bias.weight": [Part(bias, (config.t5_num_buckets, config.num_heads))]}
    for index in range(num_layers):
        table |= _block(config, f"{ours}blocks.{index}.", f"{theirs}block.{index}.layer.", cross)
    return table | norm(f"{ours}norm", f"{theirs}final_layer_norm", config.d_model)


def _block(config: ModelConfig, ours: str, theirs: str, cross: bool) -> WeightTable:
    width, own, other, last = config.d_model, f"{theirs}0.", f"{theirs}1.", f"{theirs}{2 if cross else 1}."
    table = norm(f"{ours}attention_norm", f"{own}layer_norm", width)
    table[f"{ours}attention.qkv.weight"] = stacked(*_queries_keys_values(config, f"{own}SelfAttention."))
    table |= _output(config, f"{ours}attention.output", f"{own}SelfAttention.o")
    if cross:
        q, k, v = _queries_keys_values(config, f"{other}EncDecAttention.")
        table |= norm(f"{ours}cross_attention_norm", f"{other}layer_norm", width)
        table[f"{ours}cross_attention.q.weight"] = [q]
        table[f"{ours}cross_attention.kv.weight"] = stacked(k, v)
        table |= _output(config, f"{ours}cross_attention.output", f"{other}EncDecAttention.o")
    table |= norm(f"{ours}feed_forward_norm", f"{last}layer_norm", width)
    return table | _feed_forward(config, f"{ours}feed_forward.", f"{last}DenseReluDense.")


def _queries_keys_values(config: ModelConfig, theirs: str) -> tuple[Part, Part, Part]:
    query, key, width = config.num_heads * config.head_size, config.kv_heads * config.head_size, config.d_model
    times = config.num_heads // config.kv_heads
    repeated = (Repeated(times, config.head_size),) if times > 1 else ()
    q = Part(f"{theirs}q.weight", (query, width), steps=(Scaled(config.head_size**-0.5),))
    k, v = (Part(f"{theirs}{name}.weight", (key, width), steps=repeated) for name in "kv")
    return q, k, v


def _output(config: ModelConfig, ours: str, theirs: str) -> WeightTable:
    return linear(ours, [(theirs, config.d_model)], config.num_heads * config.head_size, bias=False)


def _feed_forward(config: ModelConfig, ours: str, theirs: str) -> WeightTable:
    names, name = (("wi_0", "wi_1"), "gate_up") if config.is_gated else (("wi",), "up")
    table = linear(f"{ours}{name}", [(f"{theirs}{one}", config.d_ff) for one in names], config.d_model, bias=False)
    return table | linear(f"{ours}down", [(f"{theirs}wo", config.d_model)], config.d_ff, bias=False)
