"""BART: post-norm encoder and decoder with learned positions, two rows of which are never read, and one embedding."""

from typing import Any

from model.config import ModelConfig
from model.exchange.architectures import SEQ2SEQ, Architecture
from model.exchange.families import classic
from model.exchange.families.family import PLAIN, Family, activation_names, named
from model.exchange.families.layout import Part, Shape, WeightTable, ends, norm
from model.exchange.families.places import ANY, Place, only

OFFSET, EPS = 2, 1e-5
"""Both are fixed in its class."""
ENCODER = classic.Names(
    "self_attn_layer_norm",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.out_proj",
    "final_layer_norm",
    "fc1",
    "fc2",
)
DECODER = ENCODER._replace(
    cross_norm="encoder_attn_layer_norm",
    cross=("encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj", "encoder_attn.out_proj"),
)
SIDES = ("decoder", "encoder")


class Bart(Family):
    """BART."""

    architecture = Architecture("BartForConditionalGeneration", "bart", SEQ2SEQ)
    shape = "encdec"
    places = {
        **classic.PLACES,
        "norm_placement": only("norm_placement", "post"),
        "norm_eps": only("norm_eps", EPS),
        "positions": only("positions", "learned"),
        "max_positions": ANY,
        "position_offset": only("position_offset", OFFSET),
        "embedding_norm": only("embedding_norm", True),
        "embedding_scale": Place(
            lambda config: config.embedding_scale in (1.0, config.d_model**0.5),
            lambda config: f"it has 1.0 or sqrt(d_model), {config.d_model**0.5}",
        ),
    }
    heeds = frozenset(
        {
            "d_model",
            "encoder_layers",
            "decoder_layers",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "max_position_embeddings",
            "activation_function",
            "scale_embedding",
            "init_std",
        }
    )
    base = "model."
    aliases = frozenset(f"model.{side}.embed_tokens.weight" for side in SIDES)

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        of_sides = {
            f"{side}_{key}": value
            for side in SIDES
            for key, value in (("attention_heads", config.num_heads), ("ffn_dim", config.d_ff), ("layerdrop", 0.0))
        }
        return {
            "is_encoder_decoder": True,
            "d_model": config.d_model,
            "encoder_layers": config.encoder_layers,
            "decoder_layers": config.num_layers,
            **of_sides,
            "max_position_embeddings": config.max_positions,
            "activation_function": classic.OLD_NAMES[config.activation],
            "scale_embedding": config.embedding_scale != 1,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "init_std": config.init_std,
            "forced_eos_token_id": None,
            "tie_word_embeddings": config.tie_embeddings,
            "use_cache": True,
        }

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        heads, inner = theirs.encoder_attention_heads, theirs.encoder_ffn_dim
        classic.must_be(theirs, decoder_attention_heads=heads, decoder_ffn_dim=inner)
        return {
            "shape": self.shape,
            "num_layers": theirs.decoder_layers,
            "num_encoder_layers": theirs.encoder_layers,
            "d_model": theirs.d_model,
            "num_heads": heads,
            "d_ff": inner,
            "activation": named("activation_function", theirs.activation_function, activation_names(PLAIN)),
            "norm": "layernorm",
            "norm_placement": "post",
            "norm_eps": EPS,
            "embedding_norm": True,
            "embedding_scale": theirs.d_model**0.5 if theirs.scale_embedding else 1.0,
            "bias": True,
            "positions": "learned",
            "max_positions": theirs.max_position_embeddings,
            "position_offset": OFFSET,
            "tie_embeddings": theirs.tie_word_embeddings,
            "init_std": theirs.init_std,
        }

    def zeros(self, vocab_size: int) -> dict[str, Shape]:
        """See `Family`."""
        return {"final_logits_bias": (1, vocab_size)}

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`; where nothing is tied, each side has the embedding under its own name."""
        width = config.d_model
        table, head = ends("model.shared.weight", "lm_head.weight", vocab_size, width, config.tie_embeddings)
        if not config.tie_embeddings:
            table["embedding.weight"] += [Part(name, (vocab_size, width)) for name in sorted(self.aliases)]
        for side, ours, names, depth in (
            ("decoder", "", DECODER, config.num_layers),
            ("encoder", "encoder.", ENCODER, config.encoder_layers),
        ):
            theirs = f"model.{side}."
            table |= classic.position_table(
                config, f"{ours}position_embedding.weight", f"{theirs}embed_positions.weight"
            )
            table |= norm(f"{ours}embedding_norm", f"{theirs}layernorm_embedding", width, bias=True)
            for index in range(depth):
                table |= classic.block(config, f"{ours}blocks.{index}.", f"{theirs}layers.{index}.", names)
        return table | head
