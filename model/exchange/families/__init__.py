"""The classes of Hugging Face's that models of ours are written as and read from.

causal   llama.py (Llama, Mistral, Qwen2, Qwen3, SeedOss, SmolLM3, Arcee, Phi3), olmo2.py, gemma.py (Gemma, 2, 3),
         gpt2.py, opt.py, bloom.py, gptj.py, gpt_neox.py, phi.py, cohere.py
prefix   llama.py (PrefixLlama: hf/prefix_llama.py is put into the folder), prefix_decoder.py (other blocks, likewise)
encoder  llama.py (EuroBert), bert.py (Bert, Roberta), modernbert.py
encdec   t5.py (T5, MT5, UMT5), bart.py, encdec_rope.py (hf/encdec_rope.py likewise)
"""

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.families.bart import Bart
from model.exchange.families.bert import Bert, Roberta
from model.exchange.families.bloom import Bloom
from model.exchange.families.cohere import Cohere
from model.exchange.families.encdec_rope import EncDecRope
from model.exchange.families.family import Family
from model.exchange.families.gemma import Gemma, Gemma2, Gemma3
from model.exchange.families.gpt2 import Gpt2
from model.exchange.families.gpt_neox import GptNeoX
from model.exchange.families.gptj import GptJ
from model.exchange.families.llama import (
    Arcee,
    EuroBert,
    Llama,
    Mistral,
    Phi3,
    PrefixLlama,
    Qwen2,
    Qwen3,
    SeedOss,
    SmolLM3,
)
from model.exchange.families.modernbert import ModernBert
from model.exchange.families.olmo2 import Olmo2
from model.exchange.families.opt import Opt
from model.exchange.families.phi import Phi
from model.exchange.families.places import misfits, refusal
from model.exchange.families.prefix_decoder import PrefixDecoder
from model.exchange.families.t5 import MT5, T5, UMT5

FAMILIES: tuple[Family, ...] = (
    Qwen3(),
    Mistral(),
    Llama(),
    SeedOss(),
    SmolLM3(),
    Qwen2(),
    Arcee(),
    Phi3(),
    Olmo2(),
    Gemma(),
    Gemma2(),
    Gemma3(),
    Opt(),
    Gpt2(),
    Bloom(),
    Phi(),
    GptJ(),
    GptNeoX(),
    Cohere(),
    PrefixLlama(),
    PrefixDecoder(),
    EuroBert(),
    Roberta(),
    Bert(),
    ModernBert(),
    UMT5(),
    T5(),
    MT5(),
    EncDecRope(),
    Bart(),
)
"""Where several have a place for a model, it is written as the first of them."""
BY_TYPE = {family.architecture.model_type: family for family in FAMILIES}
"""By what config.json says."""


def family_of(config: ModelConfig, pad_id: int | None = None) -> Family:
    """The family that a model is written as, with this id of padding where it is known.

    Mistake naming the key that the nearest one has no place for.
    """
    candidates = [family for family in FAMILIES if family.is_written and family.shape == config.shape]
    if pad_id is not None:
        candidates = [family for family in candidates if family.takes_padding(config, pad_id)]
    family = min(candidates, key=lambda each: len(misfits(config, each.places)))
    for key in misfits(config, family.places):
        raise Mistake(refusal(config, family.places, key, f"Hugging Face's {family.architecture.name}"))
    return family
