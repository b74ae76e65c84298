"""The classes of Hugging Face's that models of ours are written as and read from.

shape    positions   class                         family
causal   rope        LlamaForCausalLM and its kin  llama.py
prefix   rope        PrefixLlamaForCausalLM        llama.py, hf/prefix_llama.py is put into the folder
encoder  rope        EuroBertForMaskedLM           llama.py
encdec   t5_bias     T5ForConditionalGeneration    t5.py
encdec   rope        EncDecRopeForConditionalGeneration    encdec_rope.py, hf/encdec_rope.py likewise
"""

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.families.encdec_rope import EncDecRope
from model.exchange.families.family import Family
from model.exchange.families.llama import EuroBert, Llama, Mistral, PrefixLlama, Qwen2, Qwen3, SeedOss, SmolLM3
from model.exchange.families.places import misfits, refusal
from model.exchange.families.t5 import T5

FAMILIES: tuple[Family, ...] = (
    Qwen3(),
    Mistral(),
    Llama(),
    SeedOss(),
    SmolLM3(),
    Qwen2(),
    PrefixLlama(),
    EuroBert(),
    T5(),
    EncDecRope(),
)
"""Where several have a place for a model, it is written as the first of them."""
BY_TYPE = {family.architecture.model_type: family for family in FAMILIES}
"""By what config.json says."""


def family_of(config: ModelConfig) -> Family:
    """The family that a model is written as. Mistake naming the key that the nearest one has no place for."""
    candidates = [family for family in FAMILIES if family.is_written and family.shape == config.shape]
    family = min(candidates, key=lambda each: len(misfits(config, each.places)))
    for key in misfits(config, family.places):
        raise Mistake(refusal(config, family.places, key, family.architecture.name))
    return family
