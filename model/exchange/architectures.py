"""The classes of Hugging Face's that models of ours are written as and read from.

shape    positions   class                         model_type
causal   rope        LlamaForCausalLM              llama
         rope        Qwen3ForCausalLM              qwen3, for qk_norm
         rope        SeedOssForCausalLM            seed_oss, for qkv_bias unlike bias, odd numbers of heads
         rope        MistralForCausalLM            mistral, where all layers slide and nothing has a bias
         rope        SmolLM3ForCausalLM            smollm3, where only some layers slide or have positions, or
                                                   all slide and there are biases
         rope        Qwen2ForCausalLM              qwen2, read but not written: transformers gives that type
                                                   its own tokenizer, whatever the folder says
prefix   rope        PrefixLlamaForCausalLM        prefix_llama, hf/prefix_llama.py is put into the folder
encoder  rope        EuroBertForMaskedLM           eurobert
encdec   t5_bias     T5ForConditionalGeneration    t5
encdec   rope        EncDecRopeForConditionalGeneration    encdec_rope, hf/encdec_rope.py likewise
"""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

SHIPPED = Path(__file__).parent / "hf"
"""Modeling files for classes that transformers lacks."""


class Architecture(NamedTuple):
    """A class that computes what a model of ours does."""

    name: str
    """Its name."""
    model_type: str
    """What config.json calls it."""
    auto: str
    """The Auto class that loads it."""
    shipped: str | None = None
    """File of model/exchange/hf/ that defines it, where transformers does not."""

    @property
    def config_name(self) -> str:
        """Name of the class of its config."""
        return f"{self.name.split('For')[0]}Config"

    def config_class(self) -> Any:
        """The class of its config: transformers' own or ours, never one of a folder."""
        return getattr(self._module(), self.config_name)

    def model_class(self) -> Any:
        """The class itself, likewise."""
        return getattr(self._module(), self.name)

    def _module(self) -> Any:
        shipped = f"model.exchange.hf.{self.shipped.removesuffix('.py')}" if self.shipped else None
        return importlib.import_module(shipped or "transformers")


LLAMA = Architecture("LlamaForCausalLM", "llama", "AutoModelForCausalLM")
QWEN2 = Architecture("Qwen2ForCausalLM", "qwen2", "AutoModelForCausalLM")
SEED_OSS = Architecture("SeedOssForCausalLM", "seed_oss", "AutoModelForCausalLM")
QWEN3 = Architecture("Qwen3ForCausalLM", "qwen3", "AutoModelForCausalLM")
MISTRAL = Architecture("MistralForCausalLM", "mistral", "AutoModelForCausalLM")
SMOLLM3 = Architecture("SmolLM3ForCausalLM", "smollm3", "AutoModelForCausalLM")
PREFIX = Architecture("PrefixLlamaForCausalLM", "prefix_llama", "AutoModelForCausalLM", "prefix_llama.py")
EUROBERT = Architecture("EuroBertForMaskedLM", "eurobert", "AutoModelForMaskedLM")
T5 = Architecture("T5ForConditionalGeneration", "t5", "AutoModelForSeq2SeqLM")
ENCDEC = Architecture("EncDecRopeForConditionalGeneration", "encdec_rope", "AutoModelForSeq2SeqLM", "encdec_rope.py")
CAUSAL = (LLAMA, QWEN2, QWEN3, SEED_OSS, MISTRAL, SMOLLM3)
BY_TYPE = {found.model_type: found for found in (*CAUSAL, PREFIX, EUROBERT, T5, ENCDEC)}
