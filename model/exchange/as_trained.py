"""Would a folder of ours be served as what it was trained as?

The shape travels twice: as `model_type` in config.json, which chooses the class, and in shardline.json, which the
conversion wrote. Where somebody changed one of them, the model would be read in another shape, and would write noise
without an error: such a folder is refused.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.mistakes import Mistake, shown
from model.config import ModelConfig
from model.exchange.families.places import as_yaml
from model.exchange.json_objects import read_object
from model.exchange.their_configs import ImportedConfig

MARKER = "shardline.json"
"""File that says a folder was exported by us, and from which model config."""
BLOCKS = ("shape", "positions", "norm", "norm_placement", "norm_eps", "activation", "qk_norm", "embedding_scale")
COMPARED = (*BLOCKS, "attention_scale", "attention_softcap", "logit_scale", "logit_softcap")
"""Keys of a model that its weights say nothing, or not clearly, about, beside those of positions and windows."""


def marked(folder: Path) -> dict[str, Any]:
    """What the marker of a folder says; nothing where there is none."""
    marker = folder / MARKER
    return read_object(marker) if marker.is_file() else {}


def refuse_other_readings(folder: Path, imported: ImportedConfig) -> None:
    """Mistake when config.json makes another model of a folder of ours than the one that was trained.

    imported: what config.json says in our words. Folders of others have no shardline.json and say nothing of it.
    """
    said = marked(folder).get("model")
    if not isinstance(said, dict):
        return
    trained, served = _meant(_as_said(folder, said, imported.config)), _meant(imported.config)
    for key in (key for key in trained if trained[key] != served.get(key)):
        raise Mistake(
            f"{folder}: its config.json (model_type {imported.architecture.model_type}) makes it a model "
            f"of {key} {_as_text(served.get(key))}, but it was trained with {key} {_as_text(trained[key])}, says "
            f"{MARKER}; served so it would write noise. Put back the config.json that 'shardline convert' wrote"
        )


def _as_said(folder: Path, said: dict[str, Any], served: ModelConfig) -> ModelConfig:
    """The model that a marker describes; where it says nothing, one of another version, it is as it is served."""
    known = {key: value for key, value in said.items() if key in ModelConfig.model_fields}
    try:
        return ModelConfig.model_validate(served.model_dump() | known)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
        raise Mistake(f"{folder / MARKER}: it describes no model ({reason}); export the run again") from None


def _meant(config: ModelConfig) -> dict[str, Any]:
    """What a config says of how tokens become logits, whichever of several ways it says it; lists by layer."""
    layers, meant = range(config.num_layers), {key: getattr(config, key) for key in COMPARED}
    meant["sliding_window"] = [config.sliding_window if config.slides(index) else None for index in layers]
    if config.positions == "rope":
        own = config.sliding_rope_theta or config.rope_theta
        bases = [own if config.slides(index) else config.rope_theta for index in layers]
        meant["rope_theta"] = [base if config.rotates(index) else None for index, base in enumerate(bases)]
        meant |= {"rope_fraction": config.rotary_dim / config.head_size, "rope_scaling": config.rope_scaling}
    return meant


def _as_text(value: Any) -> str:
    """A value, one for all layers where they agree."""
    if isinstance(value, list):
        return _as_text(value[0]) if len(set(value)) == 1 else shown(value)
    return as_yaml(value)
