"""ModernBERT: pre-norm encoders of gated blocks, most of which see a window with a rotary base of its own.

The embedding's norm stands for that of the first attention. Old configs say by a number which layers see all and give
both bases keys of their own, new ones by lists and objects; both are written, and both are read.
"""

from typing import Any

from common.mistakes import Mistake
from model.config import FULL, SLIDING, ModelConfig
from model.exchange.architectures import MASKED, Architecture
from model.exchange.families import classic, rope
from model.exchange.families.family import GATES, Family, activation_names, named
from model.exchange.families.layers import kinds_of_layers, window_of
from model.exchange.families.layout import WeightTable, ends, linear, norm
from model.exchange.families.places import ATTENTION_ALIKE, among, only

EVERY = "global_attn_every_n_layers"
FREE = ("bias", "qkv_bias", "head_bias", "rope_theta", "rope_scaling")
WINDOWS = ("sliding_window", "layer_types", "sliding_rope_theta")


class ModernBert(Family):
    """ModernBERT."""

    architecture = Architecture("ModernBertForMaskedLM", "modernbert", MASKED)
    shape = "encoder"
    places = {
        **among({}, (*FREE, *WINDOWS)),
        "attention_output_bias": ATTENTION_ALIKE,
        "norm": only("norm", "layernorm"),
        "activation": only("activation", *GATES),
        "embedding_norm": only("embedding_norm", True),
        "first_attention_norm": only("first_attention_norm", False),
        "head_transform": only("head_transform", True),
    }
    heeds = frozenset(
        {
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "hidden_activation",
            "classifier_activation",
            "cls_token_id",
            "sep_token_id",
            "max_position_embeddings",
            "norm_eps",
            "norm_bias",
            "attention_bias",
            "mlp_bias",
            "decoder_bias",
            "classifier_bias",
            "local_attention",
            "layer_types",
            EVERY,
            "rope_parameters",
            "rope_scaling",
            "global_rope_theta",
            "local_rope_theta",
        }
    )
    base = "model."
    heads = ("head", "decoder")

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        full, own = rope.rope_keys(config)["rope_parameters"], config.sliding_rope_theta
        sliding = full if own is None else {"rope_type": "default", "rope_theta": own}
        function = GATES[config.activation]
        return {
            "hidden_size": config.d_model,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "intermediate_size": config.d_ff,
            "hidden_activation": function,
            "classifier_activation": function,
            "max_position_embeddings": max_positions,
            "norm_eps": config.norm_eps,
            "norm_bias": config.bias,
            "attention_bias": config.has_qkv_bias,
            "mlp_bias": config.bias,
            "decoder_bias": config.head_bias,
            "classifier_bias": config.bias,
            "attention_dropout": 0.0,
            "embedding_dropout": 0.0,
            "mlp_dropout": 0.0,
            "local_attention": config.sliding_window or max_positions,  # it asks for one where no layer slides too
            "layer_types": kinds_of_layers(config),
            EVERY: _interval(config),
            "rope_parameters": {FULL: full, SLIDING: sliding},
            "global_rope_theta": full["rope_theta"],
            "local_rope_theta": sliding["rope_theta"],
            "tie_word_embeddings": config.tie_embeddings,
        }

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        functions = activation_names(GATES)
        activation = named("hidden_activation", theirs.hidden_activation, functions)
        if named("classifier_activation", theirs.classifier_activation, functions) != activation:
            classic.must_be(theirs, classifier_activation=theirs.hidden_activation)
        classic.must_be(theirs, norm_bias=theirs.mlp_bias, classifier_bias=theirs.mlp_bias)
        window = window_of(theirs)
        if window:
            window["sliding_window"] = theirs.local_attention  # what is called sliding_window there is half of it
        return {
            "shape": self.shape,
            "num_layers": theirs.num_hidden_layers,
            "d_model": theirs.hidden_size,
            "num_heads": theirs.num_attention_heads,
            "d_ff": theirs.intermediate_size,
            "activation": activation,
            "norm": "layernorm",
            "norm_eps": theirs.norm_eps,
            "embedding_norm": True,
            "first_attention_norm": False,
            "bias": theirs.mlp_bias,
            "qkv_bias": theirs.attention_bias,
            "attention_output_bias": theirs.attention_bias,
            **window,
            **rope.bases_of(theirs),
            "head_transform": True,
            "head_bias": theirs.decoder_bias,
            "tie_embeddings": theirs.tie_word_embeddings,
            "init_std": theirs.initializer_range,
        }

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`."""
        width, bias = config.d_model, config.bias
        names = "model.embeddings.tok_embeddings.weight", "decoder.weight"
        table, head = ends(*names, vocab_size, width, config.tie_embeddings)
        table |= norm("embedding_norm", "model.embeddings.norm", width, bias)
        for index in range(config.num_layers):
            table |= _block(config, index, f"blocks.{index}.", f"model.layers.{index}.")
        table |= norm("norm", "model.final_norm", width, bias)
        table |= linear("head_transform.dense", [("head.dense", width)], width, bias)
        table |= norm("head_transform.norm", "head.norm", width, bias)
        return table | head | classic.head_bias(config, vocab_size, "decoder.bias")

    def refuse_uneven_layers(self, where: str, facts: dict[str, Any]) -> None:
        """See `Family`; without a list the number has to be there or to be left out."""
        super().refuse_uneven_layers(where, facts)
        if EVERY in facts and facts[EVERY] is None and facts.get("layer_types") is None:
            raise Mistake(f"{where}: {EVERY} null says nothing of layers; give a number, or layer_types")


def _interval(config: ModelConfig) -> int | None:
    """Every how many layers one sees all, for transformers 4.

    None where that does not say it, or where frequencies are stretched, of which version 4 knows nothing: it ends in an
    error then, and not in other numbers.
    """
    kinds, layers = kinds_of_layers(config), range(config.num_layers)
    if config.rope_scaling is not None:
        return None
    fits = (n for n in range(1, config.num_layers + 1) if kinds == [SLIDING if i % n else FULL for i in layers])
    return next(fits, None)


def _block(config: ModelConfig, index: int, ours: str, theirs: str) -> WeightTable:
    width, inner, bias = config.d_model, config.d_ff, config.bias
    table = norm(f"{ours}attention_norm", f"{theirs}attn_norm", width, bias) if index else {}
    table |= linear(f"{ours}attention.qkv", [(f"{theirs}attn.Wqkv", 3 * width)], width, config.has_qkv_bias)
    output = [(f"{theirs}attn.Wo", width)]
    table |= linear(f"{ours}attention.output", output, width, config.has_attention_output_bias)
    table |= norm(f"{ours}feed_forward_norm", f"{theirs}mlp_norm", width, bias)
    table |= linear(f"{ours}feed_forward.gate_up", [(f"{theirs}mlp.Wi", 2 * inner)], width, bias)
    return table | linear(f"{ours}feed_forward.down", [(f"{theirs}mlp.Wo", width)], inner, bias)
