"""A section of a config file, as all rooms write theirs."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a config file: unknown keys are refused, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
