"""A class of Hugging Face's: its name, its type in config.json, what loads it.

Which there are and what of ours each of them has a place for is said in families/.
"""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

SHIPPED = Path(__file__).parent / "hf"
"""Modeling files for classes that transformers lacks."""

CAUSAL, MASKED, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"
"""Auto classes, by what models do: go on with a text, fill its masks, say another one."""


class Architecture(NamedTuple):
    """A class that computes what a model of ours does."""

    name: str
    """Its name."""
    model_type: str
    """What config.json calls it."""
    auto: str = CAUSAL
    """The Auto class that loads it."""
    shipped: str | None = None
    """File of model/exchange/hf/ that defines it, where transformers does not."""

    config: str | None = None
    """The class of its config, where it is not called as the class is."""

    @property
    def config_name(self) -> str:
        """Name of the class of its config."""
        return self.config or f"{self.name.split('For')[0]}Config"

    @property
    def fills_masks(self) -> bool:
        """Whether it fills masks in a text and generates nothing."""
        return self.auto == MASKED

    def config_class(self) -> Any:
        """The class of its config: transformers' own or ours, never one of a folder."""
        return getattr(self._module(), self.config_name)

    def model_class(self) -> Any:
        """The class itself, likewise."""
        return getattr(self._module(), self.name)

    def _module(self) -> Any:
        shipped = f"model.exchange.hf.{self.shipped.removesuffix('.py')}" if self.shipped else None
        return importlib.import_module(shipped or "transformers")
