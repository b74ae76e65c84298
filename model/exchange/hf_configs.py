"""What config.json says of a model of ours (families/)."""

from typing import Any

import torch

from model.config import ModelConfig
from model.exchange.architectures import Architecture
from model.exchange.families import family_of


def architecture(config: ModelConfig) -> Architecture:
    """The class that computes what this model computes. ValueError naming the key that none has a place for."""
    return family_of(config).architecture


def hf_config(
    config: ModelConfig, vocab_size: int, max_positions: int, dtype: torch.dtype, pad_id: int | None = None
) -> dict[str, Any]:
    """config.json of the same model, but for the ids of special tokens. ValueError as of `architecture`.

    The dtype stands there under its old and its new name, for old and new readers. `pad_id` as of `family_of`.
    """
    family, dtype_name = family_of(config, pad_id), str(dtype).removeprefix("torch.")
    found = family.architecture
    keys = {
        "architectures": [found.name],
        "model_type": found.model_type,
        "vocab_size": vocab_size,
        "initializer_range": config.init_std,
        "dtype": dtype_name,
        "torch_dtype": dtype_name,
    }
    if found.shipped:
        keys["auto_map"] = auto_map(found)
    return keys | family.keys(config, max_positions)


def auto_map(found: Architecture) -> dict[str, str]:
    """What transformers takes from a class's modeling file for each of its Auto classes."""
    assert found.shipped
    module = found.shipped.removesuffix(".py")
    model = found.config_name.removesuffix("Config") + "Model"
    classes = {"AutoConfig": found.config_name, "AutoModel": model, found.auto: found.name}
    return {auto: f"{module}.{name}" for auto, name in classes.items()}
