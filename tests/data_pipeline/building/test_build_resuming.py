"""A build that was interrupted goes on to the same bytes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.building import build
from data_pipeline.building.build import build_dataset
from tests.data_pipeline.building.builds import digests, settings, write_json_lines

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("ray_session")


def test_folders_of_killed_builds_are_swept_away_and_those_of_living_ones_are_not(tmp_path):
    with build._temporary_folder(str(tmp_path)) as living:
        dead = tmp_path / "shardline-ray-dead"
        dead.mkdir()
        (dead / "lock").touch()
        for folder in (dead, living):
            os.utime(folder, (0, 0))
        with build._temporary_folder(str(tmp_path)) as new:
            assert {path.name for path in tmp_path.iterdir()} == {Path(living).name, Path(new).name}
    assert not list(tmp_path.iterdir())


def interrupted(config, tokenizer_config, monkeypatch):
    """A build that is stopped when everything but the manifest is there."""

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build.build_folder, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(config, tokenizer_config)


KILLED = """
import os, signal, sys
from data_pipeline.building.build import build_dataset
from data_pipeline.config import DataConfig, TokenizerConfig

def die(state):
    if state.stage == "tokenizing" and state.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

build_dataset(DataConfig.model_validate_json(sys.argv[1]), TokenizerConfig.model_validate_json(sys.argv[2]), die)
"""


def test_a_build_killed_on_the_way_goes_on_to_the_same_bytes(plain, tokenizer_config, tmp_path):
    config = plain[0].model_copy(update={"path": str(tmp_path / "data"), "num_cpus": 1})
    command = [sys.executable, "-c", KILLED, config.model_dump_json(), tokenizer_config.model_dump_json()]
    assert subprocess.run(command, cwd=ROOT, timeout=300).returncode == -signal.SIGKILL
    # its workers may live on for a moment: what they write must not spoil the next build
    assert not (tmp_path / "data" / "manifest.json").exists()
    report = build_dataset(config, tokenizer_config)
    assert report.num_resumed >= 2
    assert digests(config.path) == digests(plain[0].path)


def test_a_shard_damaged_while_the_build_lay_still_is_written_again(plain, tokenizer_config, tmp_path, monkeypatch):
    config = plain[0].model_copy(update={"path": str(tmp_path / "data")})
    interrupted(config, tokenizer_config, monkeypatch)
    damaged = tmp_path / "data" / "train-00001.bin"
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)
    report = build_dataset(config, tokenizer_config)
    assert report.num_resumed == len(plain[1].manifest.splits["train"]) - 1
    assert digests(config.path) == digests(plain[0].path)


def test_what_another_interrupted_build_left_is_not_used(plain, tokenizer_config, tmp_path, monkeypatch):
    config = plain[0].model_copy(update={"path": str(tmp_path / "data"), "min_characters": 2000})
    interrupted(config, tokenizer_config, monkeypatch)
    (tmp_path / "data" / "notes.txt").write_text("mine")
    report = build_dataset(config.model_copy(update={"min_characters": 1}), tokenizer_config)
    assert report.num_resumed == 0
    assert (tmp_path / "data" / "notes.txt").read_text() == "mine"
    (tmp_path / "data" / "notes.txt").unlink()
    shards = {name: digest for name, digest in digests(config.path).items() if name != "build.json"}
    assert shards.items() <= digests(plain[0].path).items()


def test_going_on_opens_no_file_to_plan_again(tokenizer_config, tmp_path, monkeypatch):
    texts = [f"document {number} " * 30 for number in range(90)]
    for number in range(3):
        table = pa.table({"text": texts[number * 30 : number * 30 + 30]})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=5)
    config = settings(tmp_path / "data", tmp_path / "*.parquet", shard_megabytes=0.004)
    expected = config.model_copy(update={"path": str(tmp_path / "expected")})
    assert len(build_dataset(expected, tokenizer_config).manifest.splits["train"]) > 5
    interrupted(config, tokenizer_config, monkeypatch)
    monkeypatch.setattr(build, "plan_units", None)
    build_dataset(config, tokenizer_config)
    assert digests(config.path) == digests(expected.path)


def test_units_of_another_plan_or_torn_ones_are_found_out_anew(tokenizer_config, tmp_path, monkeypatch):
    path = write_json_lines(tmp_path / "a.jsonl", [f"document {number} " * 30 for number in range(90)])
    config = settings(tmp_path / "data", path, shard_megabytes=0.01)
    expected = config.model_copy(update={"path": str(tmp_path / "expected")})
    build_dataset(expected, tokenizer_config)
    interrupted(config.model_copy(update={"shard_megabytes": 0.02}), tokenizer_config, monkeypatch)
    interrupted(config, tokenizer_config, monkeypatch)
    units = Path(config.path) / ".shardline-build" / "units.json"
    units.write_bytes(units.read_bytes()[:-7])
    build_dataset(config, tokenizer_config)
    assert digests(config.path) == digests(expected.path)
