"""Datasets opened for reading, from one flat set of options."""

import dataclasses

from data_pipeline.manifest import Manifest
from data_pipeline.reading.batches import Reading
from data_pipeline.reading.dataset import TokenDataset
from data_pipeline.reading.loader import Loader, evaluation_batches

READING = {field.name for field in dataclasses.fields(Reading)}


def opened(path, split, window, **options):
    """A split of the dataset in a folder."""
    return TokenDataset(path, Manifest.load(path), split, window, **options)


def reading(path, **options):
    """How one rank reads the dataset in a folder, and the options that say nothing of that."""
    known = {name: value for name, value in options.items() if name in READING}
    return Reading(path, Manifest.load(path), **{"seed": 0, **known}), {
        name: value for name, value in options.items() if name not in READING
    }


def loader(path, **options):
    """A loader of one rank."""
    how, others = reading(path, **options)
    return Loader(how, **others)


def evaluation(path, **options):
    """Evaluation batches of one rank."""
    how, others = reading(path, **options)
    return evaluation_batches(how, **others)
