"""Would a folder of ours be served as what it was trained as?

The shape travels twice: as `model_type` in config.json, which chooses the class, and in shardline.json, which the
conversion wrote. Where somebody changed one of them, the model would be read in another shape, and would write noise
without an error: such a folder is refused.
"""

from common.mistakes import Mistake, shown
from model.exchange.convert import MARKER
from model.exchange.json_objects import read_object
from model.exchange.their_configs import ImportedConfig
from model.exchange.their_folder import HfFolder

COMPARED = ("shape", "positions", "norm", "rope_theta")
"""Keys of a model that its weights say nothing about."""


def refuse_other_readings(folder: HfFolder, imported: ImportedConfig) -> None:
    """Mistake when config.json makes another model of a folder of ours than the one that was trained.

    imported: what config.json says in our words. Folders of others have no shardline.json and say nothing of it.
    """
    marker = folder.path / MARKER
    trained = read_object(marker).get("model") if marker.is_file() else None
    if not isinstance(trained, dict):
        return
    for key in COMPARED if imported.config.positions == "rope" else COMPARED[:-1]:
        served = getattr(imported.config, key)
        if key in trained and trained[key] != served:
            raise Mistake(
                f"{folder.path}: its config.json (model_type {folder.config.architecture.model_type}) makes it a model "
                f"of {key} {shown(served)}, but it was trained with {key} {shown(trained[key])}, says {MARKER}; served "
                "so it would write noise. Put back the config.json that 'shardline convert' wrote"
            )
