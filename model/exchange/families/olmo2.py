"""OLMo 2: Llama with norms of what attention and feed-forward give, and of all heads of queries and keys at once."""

from typing import Any

from model.config import ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.families.classic import must_be
from model.exchange.families.llama import HEEDS, PLACES, Llama
from model.exchange.families.places import only


class Olmo2(Llama):
    """OLMo 2."""

    architecture = Architecture("Olmo2ForCausalLM", "olmo2")
    places = {
        **PLACES,
        "norm_placement": only("norm_placement", "output"),
        "qk_norm": only("qk_norm", "all_heads"),
    }
    heeds = HEEDS

    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """See `Family`; transformers 4 takes a scaling by these two keys alone."""
        keys, scaling = super().keys(config, max_positions), config.rope_scaling
        if scaling is not None and scaling.kind == "linear":
            keys["rope_scaling"] = {"type": scaling.kind, "factor": scaling.factor}
        return keys

    def _biases(self, theirs: Any) -> dict[str, Any]:
        must_be(theirs, attention_bias=False)
        return {"norm_placement": "output", "qk_norm": "all_heads"}
