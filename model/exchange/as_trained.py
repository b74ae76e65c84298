"""Would a folder of ours be served as what it was trained as?

The shape travels twice: as `model_type` in config.json, which chooses the class, and in shardline.json, which the
conversion wrote. Where somebody changed one of them, the model would be read in another shape, and would write noise
without an error: such a folder is refused.
"""

from pathlib import Path
from typing import Any

from common.mistakes import Mistake, shown
from model.exchange.json_objects import read_object
from model.exchange.their_configs import ImportedConfig

MARKER = "shardline.json"
"""File that says a folder was exported by us, and from which model config."""
SCORES = ("attention_scale", "attention_softcap", "logit_softcap")
COMPARED = ("shape", "positions", "norm", "activation", "qk_norm", *SCORES, "rope_theta")
"""Keys of a model that its weights say nothing, or not clearly, about; the last is of rotary positions."""


def marked(folder: Path) -> dict[str, Any]:
    """What the marker of a folder says; nothing where there is none."""
    marker = folder / MARKER
    return read_object(marker) if marker.is_file() else {}


def refuse_other_readings(folder: Path, imported: ImportedConfig) -> None:
    """Mistake when config.json makes another model of a folder of ours than the one that was trained.

    imported: what config.json says in our words. Folders of others have no shardline.json and say nothing of it.
    """
    trained = marked(folder).get("model")
    if not isinstance(trained, dict):
        return
    for key in COMPARED if imported.config.positions == "rope" else COMPARED[:-1]:
        served = getattr(imported.config, key)
        if key in trained and trained[key] != served:
            raise Mistake(
                f"{folder}: its config.json (model_type {imported.architecture.model_type}) makes it a model "
                f"of {key} {shown(served)}, but it was trained with {key} {shown(trained[key])}, says {MARKER}; served "
                "so it would write noise. Put back the config.json that 'shardline convert' wrote"
            )
