"""A family: one class of Hugging Face's, how a model of ours is written as it, and how one is read from it."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from common.mistakes import Mistake
from model.config import FULL, SLIDING, ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.families.layout import Shape, WeightTable
from model.exchange.families.places import Places
from model.exchange.json_objects import quoted

GATES = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh", "geglu_exact": "gelu"}
"""Our gated activations by the name of the function that their gate goes through."""
PLAIN = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
"""Our activations without a gate."""
SAME = {"swish": "silu", "gelu_python": "gelu"} | dict.fromkeys(("gelu_new", "gelu_fast"), "gelu_pytorch_tanh")
"""Other names of functions."""


class Family(ABC):
    """What is to be known of one class."""

    architecture: ClassVar[Architecture]
    shape: ClassVar[str] = "causal"
    """That of ours which it computes."""
    is_written: ClassVar[bool] = True
    """Whether models of ours are written as it, or only read from it."""
    places: ClassVar[Places]
    """Which values of our keys it has a place for."""
    heeds: ClassVar[frozenset[str]]
    """Keys of its config.json that say what it computes, beside those that all have; others are not looked at."""
    aliases: ClassVar[frozenset[str]] = frozenset()
    """Names under which its embedding may be stored once more."""
    computed: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq",)
    """Endings of weights that old files hold and no model reads."""
    unread: ClassVar[tuple[str, ...]] = ()
    """Beginnings of weights of other heads, which this class leaves alone."""
    base: ClassVar[str] = ""
    """How names of weights begin but for the head's; files of the bare model leave it out."""
    heads: ClassVar[tuple[str, ...]] = ("lm_head", "embed_out", "cls", "final_logits_bias")
    """How names of weights begin that are not the bare model's."""
    stored_as: ClassVar[Mapping[str, str]] = {}
    """Names in files of weights that transformers has under another name."""

    @abstractmethod
    def keys(self, config: ModelConfig, max_positions: int) -> dict[str, Any]:
        """config.json of a model that has a place here, beside the keys that all classes have."""

    @abstractmethod
    def ours(self, theirs: Any) -> dict[str, Any]:
        """Keys of our config from theirs, which has all defaults filled in. Mistake naming what has no place in ours.

        ValidationError when the keys do not fit each other.
        """

    @abstractmethod
    def table(self, config: ModelConfig, vocab_size: int) -> WeightTable:
        """All weights of a model that has a place here; a tied head has no entry of its own."""

    def zeros(self, vocab_size: int) -> dict[str, Shape]:
        """Its weights that have no counterpart in ours and must all be 0, by name."""
        return {}

    def takes_padding(self, config: ModelConfig, pad_id: int) -> bool:
        """Whether it computes the same with this id of padding."""
        return True

    def leaves(self, name: str) -> bool:
        """Whether a weight of a file is left alone: others' heads, and what follows from the config."""
        return name.endswith(self.computed) or (bool(self.unread) and name.startswith(self.unread))

    def longest(self, theirs: Any) -> int | None:
        """Tokens of the longest text it was made for, None where its config does not say."""
        return getattr(theirs, "max_position_embeddings", None)

    def rescales(self, theirs: Any) -> bool:
        """Whether a weight is read with a factor that is not in the table, because of a key of their config."""
        return False

    def rescale(self, table: WeightTable, config: ModelConfig, stored: Collection[str]) -> None:
        """Puts that factor into the table of a model whose files hold these weights."""
        raise NotImplementedError(f"{self.architecture.name} rescales nothing")

    def dropped(self, keys: dict[str, Any]) -> dict[str, Any]:
        """What transformers drops of the keys of a config.json, by the names that `ours` finds it by."""
        return {}

    def restored(self, theirs: Any) -> dict[str, Any]:
        """Keys that the config of a loaded model must have as the file said, because its class reads them then."""
        return {}

    def refuse_uneven_layers(self, where: str, facts: dict[str, Any]) -> None:
        """Mistake where keys of a config.json make layers differ from each other in ways that ours do not."""
        kinds, allowed = facts.get("layer_types"), {FULL, SLIDING} if "layer_types" in self.heeds else {FULL}
        if facts.get("per_layer_config"):
            raise Mistake(f"{where}: per_layer_config makes layers differ, which has no place here")
        if kinds and (not isinstance(kinds, list) or not set(map(str, kinds)) <= allowed):
            words = " and ".join(sorted(allowed))
            raise Mistake(
                f"{where}: layer_types makes layers differ, which has no place here; only {words} has for this class"
            )


def named(key: str, value: str, names: dict[str, str]) -> str:
    """Our word for one of theirs. Mistake when there is none."""
    if value not in names:
        raise Mistake(f"config.json: {key} {quoted(value)} has no place here; allowed are {', '.join(names)}")
    return names[value]


def activation_names(ours: dict[str, str]) -> dict[str, str]:
    """Names of functions -> our activations, of some of ours (`GATES`, `PLAIN`)."""
    own = {theirs: mine for mine, theirs in ours.items()}
    return own | {other: own[one] for other, one in SAME.items() if one in own}
