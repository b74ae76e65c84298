"""OLMo 2: Llama with norms of what attention and feed-forward give, and of all heads of queries and keys at once."""

from typing import Any

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

    def _biases(self, theirs: Any) -> dict[str, Any]:
        must_be(theirs, attention_bias=False)
        return {"norm_placement": "output", "qk_norm": "all_heads"}
