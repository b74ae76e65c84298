"""A section of a config file, as all rooms write theirs."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of a config file: unknown keys are refused, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def _expanded(path: str) -> str:
    try:
        known = bool(path) and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        known = False
    if not known:
        raise PydanticCustomError("place", "Expected the name of a file or folder")
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise PydanticCustomError("place", "Expected a path; there is no user of that name") from None


Place = Annotated[str, AfterValidator(_expanded)]
"""A key that names a file, a folder, a glob or a URL; `~` in it is expanded as a shell does."""
