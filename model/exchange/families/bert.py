"""BERT and RoBERTa: post-norm encoders with learned positions, a table of segments and a map before the head.

RoBERTa counts positions from the id of its padding on, over rows that are never read; BERT has no such rows, so they
are left out where a model that has them is written as one.
"""

from typing import Any, ClassVar

from model.config import ModelConfig
from model.exchange.architectures import MASKED, Architecture
from model.exchange.families import classic
from model.exchange.families.family import PLAIN, Family, activation_names, named
from model.exchange.families.layout import Part, WeightTable, ends, linear, norm
from model.exchange.families.places import ANY, Place, Places, only

NAMES = classic.Names(
    "attention.output.LayerNorm",
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    "output.LayerNorm",
    "intermediate.dense",
    "output.dense",
)


class Bert(Family):
    """BERT."""

    architecture = Architecture("BertForMaskedLM", "bert", MASKED)
    shape = "encoder"
    places: ClassVar[Places] = {
        **classic.PLACES,
        "norm_placement": only("norm_placement", "post"),
        "positions": only("positions", "learned"),
        "max_positions": ANY,
        "position_offset": ANY,
        "embedding_norm": only("embedding_norm", True),
        "segment_embeddings": Place(
            lambda config: config.segment_embeddings is not None, lambda config: "it has a table of one or more"
        ),
        "head_transform": only("head_transform", True),
        "head_bias": only("head_bias", True),
    }
    heeds = frozenset(
        {
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "hidden_act",
            "max_position_embeddings",
            "type_vocab_size",
            "layer_norm_eps",
            "is_decoder",
            "add_cross_attention",
        }
    )
    base = "bert."
    unread: ClassVar[tuple[str, ...]] = ("bert.pooler.", "cls.seq_relationship.")
    computed = ("embeddings.position_ids",)
    transform, norm_of_transform = "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"
    bias, head = "cls.predictions.bias", "cls.predictions.decoder"
    aliases = frozenset({"cls.predictions.decoder.bias"})

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        return {
            "hidden_size": config.d_model,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "intermediate_size": config.d_ff,
            "hidden_act": classic.OLD_NAMES[config.activation],
            "max_position_embeddings": self._rows(config),
            "type_vocab_size": config.segment_embeddings,
            "layer_norm_eps": config.norm_eps,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "tie_word_embeddings": config.tie_embeddings,
        }

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        classic.must_be(theirs, is_decoder=False, add_cross_attention=False)
        return {
            "shape": self.shape,
            "num_layers": theirs.num_hidden_layers,
            "d_model": theirs.hidden_size,
            "num_heads": theirs.num_attention_heads,
            "d_ff": theirs.intermediate_size,
            "activation": named("hidden_act", theirs.hidden_act, activation_names(PLAIN)),
            "norm": "layernorm",
            "norm_placement": "post",
            "norm_eps": theirs.layer_norm_eps,
            "embedding_norm": True,
            "bias": True,
            "positions": "learned",
            "max_positions": self.longest(theirs),
            "position_offset": theirs.max_position_embeddings - self.longest(theirs),
            "segment_embeddings": theirs.type_vocab_size,
            "head_transform": True,
            "head_bias": True,
            "tie_embeddings": theirs.tie_word_embeddings,
            "init_std": theirs.initializer_range,
        }

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`; a tied head's bias is stored once, another's under both of its names."""
        width, inside = config.d_model, f"{self.base}embeddings."
        names = f"{inside}word_embeddings.weight", f"{self.head}.weight"
        table, head = ends(*names, vocab_size, width, config.tie_embeddings)
        table["position_embedding.weight"] = [self._positions(config, f"{inside}position_embeddings.weight")]
        segments = (config.segment_embeddings or 0, width)
        table["segment_embedding.weight"] = [Part(f"{inside}token_type_embeddings.weight", segments)]
        table |= norm("embedding_norm", f"{inside}LayerNorm", width, bias=True)
        for index in range(config.num_layers):
            table |= classic.block(config, f"blocks.{index}.", f"{self.base}encoder.layer.{index}.", NAMES)
        table |= linear("head_transform.dense", [(self.transform, width)], width, bias=True)
        table |= norm("head_transform.norm", self.norm_of_transform, width, bias=True)
        biases = (self.bias,) if config.tie_embeddings else (self.bias, f"{self.head}.bias")
        return table | head | classic.head_bias(config, vocab_size, *biases)

    def _rows(self, config: ModelConfig) -> int:
        """Rows of their table of positions."""
        return config.max_positions or 0

    def _positions(self, config: ModelConfig, name: str) -> Part:
        rows = self._rows(config)
        unread = config.position_offset + (config.max_positions or 0) - rows
        return Part(name, (rows, config.d_model), unread)


class Roberta(Bert):
    """RoBERTa."""

    architecture = Architecture("RobertaForMaskedLM", "roberta", MASKED)
    places = {
        **Bert.places,
        "activation": only("activation", "gelu"),
        "position_offset": Place(
            lambda config: config.position_offset > 0, lambda config: "it has the padding's id + 1"
        ),
    }
    base = "roberta."
    unread = ("roberta.pooler.",)
    transform, norm_of_transform = "lm_head.dense", "lm_head.layer_norm"
    bias, head = "lm_head.bias", "lm_head.decoder"
    aliases = frozenset({"lm_head.decoder.bias"})

    def takes_padding(self, config: ModelConfig, pad_id: int) -> bool:
        """See `Family`."""
        return config.position_offset == pad_id + 1

    def longest(self, theirs: Any) -> int | None:
        """Rows of its table but those up to the padding's id."""
        return theirs.max_position_embeddings - (theirs.pad_token_id or 0) - 1

    def _rows(self, config: ModelConfig) -> int:
        return (config.max_positions or 0) + config.position_offset
