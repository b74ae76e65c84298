"""Our encoder-decoder of Llama's blocks with rotary positions (hf/encdec_rope.py); transformers has no class for it."""

from typing import Any

from model.config import ModelConfig
from model.exchange.architectures import SEQ2SEQ, Architecture
from model.exchange.families import rope
from model.exchange.families.family import GATES, PLAIN, Family, activation_names, named
from model.exchange.families.layout import WeightTable, ends
from model.exchange.families.llama import HEEDS, PLACES, biases_of, llama_keys, llama_sizes, stack
from model.exchange.families.places import among, only


class EncDecRope(Family):
    """Biases, norms of queries and keys and activations of any kind."""

    architecture = Architecture("EncDecRopeForConditionalGeneration", "encdec_rope", SEQ2SEQ, "encdec_rope.py")
    shape = "encdec"
    places = {
        **among(PLACES, ("bias", "qkv_bias", "attention_output_bias")),
        "qk_norm": only("qk_norm", False, True),
        "positions": only("positions", "rope"),
        "activation": only("activation", *GATES, *PLAIN),
    }
    heeds = HEEDS | {"num_encoder_layers", "gated", "qkv_bias", "qk_norm"}
    aliases = frozenset({"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"})

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`."""
        return llama_keys(config, max_positions) | {
            "is_encoder_decoder": True,
            "num_encoder_layers": config.encoder_layers,
            "gated": config.is_gated,
            "hidden_act": (GATES | PLAIN)[config.activation],
            "attention_bias": config.has_attention_output_bias,
            "qkv_bias": config.has_qkv_bias,
            "qk_norm": config.qk_norm,
        }

    def ours(self, theirs: Any) -> dict[str, Any]:
        """See `Family`."""
        names = activation_names(GATES if theirs.gated else PLAIN)
        return llama_sizes(theirs) | {
            **rope.rope_of(theirs.rope_parameters),
            "shape": self.shape,
            "num_encoder_layers": theirs.num_encoder_layers,
            "activation": named("hidden_act", theirs.hidden_act, names),
            **biases_of(theirs, theirs.qkv_bias, theirs.attention_bias),
            "qk_norm": theirs.qk_norm,
        }

    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """See `Family`."""
        names = "model.shared.weight", "lm_head.weight"
        embedding, head = ends(*names, vocab_size, config.d_model, config.tie_embeddings)
        decoder = stack(config, config.num_layers, "", "model.decoder.", cross=True)
        encoder = stack(config, config.encoder_layers, "encoder.", "model.encoder.")
        return embedding | decoder | encoder | head
