"""One build that many tests look at."""

import pytest

from data_pipeline.building.build import build_dataset
from tests.data_pipeline.building.builds import settings


@pytest.fixture(scope="package")
def plain(ray_session, corpus_file, tokenizer_config, tmp_path_factory):
    """The corpus built with two CPUs, and how it was reported."""
    seen = []
    config = settings(tmp_path_factory.mktemp("plain") / "data", corpus_file, validation_fraction=0.1, num_cpus=2)
    return config, build_dataset(config, tokenizer_config, seen.append), seen
