"""What all tests share: one Ray session, real text that every machine has, and a small tokenizer trained on it."""

import json
import sysconfig
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from data_pipeline.building.build import build_dataset
from data_pipeline.building.build import ray_session as start_ray
from data_pipeline.config import DataConfig, SourceConfig, TokenizerConfig
from data_pipeline.tokenizer import Tokenizer, train_tokenizer

settings.register_profile("shardline", deadline=None, max_examples=40)
settings.load_profile("shardline")


class _Together(LoadScopeScheduling):
    """Where several processes share the tests, those of a file stay together, and all of the practice cluster."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        return str(file.parent if file.parent.name == "slurm" else file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """What says which process is given which tests."""
    return _Together(config, log)


@pytest.fixture(scope="session")
def ray_session():
    """Starts Ray once; every build of the test process uses it."""
    with start_ray(DataConfig(path="unused", num_cpus=2), lambda state: None):
        yield


@pytest.fixture(scope="session")
def stdlib_documents() -> list[str]:
    """Some 300 modules of the standard library, a few megabytes, each once (Debian's Python has one of them twice)."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = [*folder.glob("*.py"), *folder.glob("asyncio/*.py"), *folder.glob("email/*.py"), *folder.glob("json/*.py")]
    documents = [path.read_bytes().decode() for path in sorted(paths) if path.stat().st_size < 60_000]
    return [document for document in dict.fromkeys(documents) if document]


@pytest.fixture(scope="session")
def corpus_file(stdlib_documents, tmp_path_factory) -> Path:
    """The documents as JSON lines."""
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in stdlib_documents), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer_config(corpus_file, tmp_path_factory) -> TokenizerConfig:
    """A trained tokenizer of 2,000 pieces."""
    config = TokenizerConfig(
        path=str(tmp_path_factory.mktemp("tokenizer")), vocab_size=2000, training_megabytes=1, num_sentinels=32
    )
    train_tokenizer(config, [SourceConfig(path=str(corpus_file))])
    return config


@pytest.fixture(scope="session")
def tokenizer(tokenizer_config) -> Tokenizer:
    """The same, loaded."""
    return Tokenizer.load(tokenizer_config.path)


@pytest.fixture(scope="session")
def real_dataset(tmp_path_factory, corpus_file, tokenizer_config, ray_session) -> str:
    """Folder of the same documents as tokens."""
    config = DataConfig(path=str(tmp_path_factory.mktemp("real")), sources=[SourceConfig(path=str(corpus_file))])
    build_dataset(config, tokenizer_config)
    return config.path
