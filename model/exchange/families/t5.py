"""T5 (v1.1 and Flan-T5 alike) and kin: pre-norm RMSNorm without biases, a table of relative biases for each stack.

UMT5 has one in each layer instead. T5 does not scale its scores, so queries are multiplied; it has as many key heads as
query heads, so ours are repeated; and its head is always written as one of its own, for what a tied one reads is
scaled.
"""

from collections.abc import Collection
from typing import Any, ClassVar

from model.config import ModelConfig
from model.exchange.architectures import SEQ2SEQ, Architecture
from model.exchange.families.family import Family, named
from model.exchange.families.layout import Part, Repeated, Scaled, WeightTable, ends, linear, norm, stacked
from model.exchange.families.places import Place, Places, among, only

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
    places: ClassVar[Places] = {
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
            "tie_embeddings": not self.rescales(theirs),
        }

    def longest(self, theirs: Any) -> int | None:
        """Any length: distances beyond the last bucket are alike."""
        return None

    def rescales(self, theirs: Any) -> bool:
        """See `Family`; the first T5's config says by the key that ties the head that what it reads is scaled."""
        return theirs.scale_decoder_outputs

    def rescale(self, table: WeightTable, config: ModelConfig, stored: Collection[str]) -> None:
        """See `Family`."""
        source = table["head.weight"][0]
        if source.name not in stored:
            source = table["embedding.weight"][0]
        table["head.weight"] = [source._replace(steps=(Scaled(config.d_model**0.5),))]

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

    def rescales(self, theirs: Any) -> bool:
        """Its class scales nothing, whatever the config says."""
        return False


class UMT5(T5):
    """A table of biases in each layer, and logits that are divided by sqrt(d_model).

    By its config, as transformers 4 reads it, a head of its own is not scaled; version 5 forgets that. We go by the
    config: such a model gets a last norm that is as much larger, and is the same to either version.
    """

    architecture = Architecture("UMT5ForConditionalGeneration", "umt5", SEQ2SEQ)
    places: ClassVar[Places] = {
        **T5.places,
        "t5_bias_per_layer": only("t5_bias_per_layer", True),
        "logit_scale": Place(
            lambda config: config.logit_scale == config.d_model**-0.5,
            lambda config: f"it has d_model**-0.5, {config.d_model**-0.5}",
        ),
    }

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`; the key that ties the head says that it is scaled."""
        return super().keys(config, max_positions) | {"tie_word_embeddings": True}

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        own = {"t5_bias_per_layer": True, "logit_scale": theirs.d_model**-0.5, "tie_embeddings": True}
        return super().ours(theirs) | own

    def dropped(self, keys: dict[str, Any]) -> dict[str, Any]:
        """See `Family`."""
        return {"scale_decoder_outputs": keys.get("tie_word_embeddings", True)}

    def restored(self, theirs: Any) -> dict[str, Any]:
        """See `Family`; it was true while weights were loaded, or the embedding would be tied to nothing."""
        return {"tie_word_embeddings": theirs.scale_decoder_outputs}

    def rescales(self, theirs: Any) -> bool:
        """See `Family`."""
        return not theirs.scale_decoder_outputs

    def rescale(self, table: WeightTable, config: ModelConfig, stored: Collection[str]) -> None:
        """See `Family`."""
        table["norm.weight"] = [part._replace(steps=(Scaled(config.d_model**-0.5),)) for part in table["norm.weight"]]


def _stack(config: ModelConfig, num_layers: int, ours: str, theirs: str, cross: bool) -> WeightTable:
    table: WeightTable = {}
    for index in range(num_layers):
        table |= _block(config, f"{ours}blocks.{index}.", f"{theirs}block.{index}.layer.", cross)
    tables = range(num_layers if config.t5_bias_per_layer else 1)
    for index in tables:
        own = f"{ours}blocks.{index}.attention.relative_bias" if config.t5_bias_per_layer else f"{ours}attention_bias"
        bias = f"{theirs}block.{index}.layer.0.SelfAttention.relative_attention_bias.weight"
        table[f"{own}.weight"] = [Part(bias, (config.t5_num_buckets, config.num_heads))]
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
