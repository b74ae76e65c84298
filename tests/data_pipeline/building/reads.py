"""What a source holds, read without a build."""

from data_pipeline.building.source_files import list_files
from data_pipeline.building.sources import Rejects, plan_units, read_documents


def parts_of(config, unit_bytes):
    """The units of a source."""
    return plan_units(list_files([config]), [config], unit_bytes)


def read_all(config, unit_bytes=10**9):
    """Texts and rejects of everything a source holds, unit by unit."""
    rejects = Rejects()
    return [text for unit in parts_of(config, unit_bytes) for _, text in read_documents(unit, config, rejects)], rejects
