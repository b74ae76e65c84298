"""The model of ours that somebody's config.json describes.

    config.json -> keys that are heeded (config_keys.py) -> transformers' config, defaults filled in -> ModelConfig

What ours has no place for is refused by the name of its key.
"""

from typing import Any, NamedTuple

from pydantic import ValidationError

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.config_keys import KEYS, OF_ALL, heeded
from model.exchange.families import BY_TYPE
from model.exchange.families.family import Family
from model.exchange.json_objects import quoted


class TheirConfig(NamedTuple):
    """A config.json whose values are of their types."""

    where: str
    """Name of the file."""
    family: Family
    keys: dict[str, Any]
    """Keys that are heeded, as they stand in the file."""
    object: Any
    """Their config as transformers has it, with all defaults filled in."""

    @property
    def architecture(self) -> Architecture:
        """The class that it is for."""
        return self.family.architecture

    @classmethod
    def of(cls, facts: dict[str, Any], where: str = "config.json") -> "TheirConfig":
        """Checks what a file holds. ValueError when it is of no class that is read, or a value is out of bounds."""
        kind = facts.get("model_type")
        family = BY_TYPE.get(kind) if isinstance(kind, str) else None
        if family is None:
            allowed = ", ".join(BY_TYPE)
            raise Mistake(f"{where}: model_type {quoted(kind)} is none that is read here; allowed are {allowed}")
        if facts.get("quantization_config"):
            raise Mistake(f"{where}: the weights are quantized; take the model they were made from")
        family.refuse_uneven_layers(where, facts)
        keys = heeded(where, facts, {key: KEYS[key] for key in KEYS if key in family.heeds | OF_ALL})
        theirs = _config_object(family.architecture, keys, where)
        theirs.update(family.dropped(keys))
        for key in ("pad_token_id", "decoder_start_token_id"):
            if (getattr(theirs, key, None) or 0) >= theirs.vocab_size:
                index, size = getattr(theirs, key), theirs.vocab_size
                raise Mistake(f"{where}: {key} {index} is no id of a vocabulary of vocab_size {size}")
        return cls(where, family, keys, theirs)


class ImportedConfig(NamedTuple):
    """What a config.json says in our words."""

    config: ModelConfig
    vocab_size: int
    max_positions: int | None
    """Longest text it was made for, None where it does not say."""
    family: Family
    rescales: bool = False
    """Whether a weight is read with a factor (`Family.rescale`)."""

    @property
    def architecture(self) -> Architecture:
        """The class that it was read from."""
        return self.family.architecture


def from_hf_config(their: TheirConfig) -> ImportedConfig:
    """The model of ours that a config.json describes. ValueError naming what ours has no place for."""
    family, theirs = their.family, their.object
    try:
        config = ModelConfig(**family.ours(theirs))
    except ValidationError as error:
        first = error.errors()[0]
        key = "".join(f"{part}: " for part in first["loc"])
        reason = f"{key}{first['msg'].removeprefix('Value error, ')}"
        raise Mistake(f"{their.where}: it describes a model that has no place here ({reason})") from None
    return ImportedConfig(config, theirs.vocab_size, family.longest(theirs), family, family.rescales(theirs))


def _config_object(found: Architecture, keys: dict[str, Any], where: str) -> Any:
    """Their config with all defaults filled in."""
    try:
        return found.config_class()(**keys)
    except Exception as error:  # transformers and its validators raise what they please
        reason = quoted(str(error).strip().splitlines()[-1] if str(error) else type(error).__name__)
        raise Mistake(f"{where}: {found.config_name} of transformers does not take it ({reason})") from None
