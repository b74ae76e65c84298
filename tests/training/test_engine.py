"""DeepSpeed's configuration as it follows from ours."""

import os
import stat
from pathlib import Path

import pytest

from tests.training.runs import tiny_config
from training.deepspeed_config import accumulation_steps, deepspeed_config
from training.engine import check_zero_section, private_extensions


def config_of(stage: int = 2, device: str = "cpu", world_size: int = 2, precision: str = "fp32", **keys):
    training = {"zero_stage": stage, "precision": precision, "deepspeed": keys}
    config = deepspeed_config(tiny_config("data", training=training), world_size, device)
    check_zero_section(config["zero_optimization"])
    return config


def test_sizes_follow_from_the_global_batch():
    config = config_of()
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (2, 4)


def test_a_global_batch_that_the_ranks_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"training.global_batch_size: 16 is no multiple of .* 2 times 3 ranks"):
        accumulation_steps(tiny_config("data"), 3)


@pytest.mark.parametrize(("stage", "clipping"), [(0, 0.0), (1, 0.5), (2, 0.5), (3, 0.5)])
def test_clipping_is_always_said_because_deepspeed_would_clip_unasked(stage, clipping):
    assert config_of(stage)["gradient_clipping"] == clipping


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_accumulates_gradients_in_fp32(stage):
    config = config_of(stage, precision="bf16")
    assert config["bf16"] == {"enabled": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}


def test_a_runs_own_keys_are_merged_in():
    own = {"reduce_bucket_size": 1000, "sub_group_size": 10}
    config = config_of(3, zero_optimization=own, wall_clock_breakdown=True)
    assert config["zero_optimization"] == {
        "stage": 3,
        "overlap_comm": False,
        "contiguous_gradients": False,
        "reduce_bucket_size": 1000,
        "sub_group_size": 10,
    }
    assert config["wall_clock_breakdown"] is True


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"gradient_clipping": 1.0}, "training.deepspeed.gradient_clipping: it follows from optimizer.gradient_clip"),
        ({"zero_optimization": {"stage": 2}}, "training.deepspeed.zero_optimization.stage: it follows from training"),
        ({"optimizer": {"type": "Adam"}}, "training.deepspeed.optimizer: it follows from optimizer"),
        ({"bf16": {"enabled": False}}, r"training.deepspeed.bf16: it follows from training.precision"),
        ({"communication_data_type": "fp32"}, "communication_data_type: it follows from training.gradient_communicati"),
        ({"gradient_cliping": 1.0}, "training.deepspeed.gradient_cliping: not a key for DeepSpeed here; known are"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "disk"}}},
            "offload_optimizer.device: 'disk'; expected",
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": "x"}},
            "zero_optimization.reduce_bucket_size: found .*x.*; expected a whole number of 1",
        ),
        ({"zero_optimization": 3}, "training.deepspeed.zero_optimization: 3; expected a section"),
        ({"wall_clock_breakdown": {"enabled": True}}, "wall_clock_breakdown: .*; expected a single value"),
        ({"activation_checkpointing": {}}, "activation_checkpointing: it follows from model.activation_checkpointing"),
        ({"compile": {"enabled": True}}, "training.deepspeed.compile: it follows from model.compile"),
    ],
)
def test_keys_that_conflict_or_mean_nothing_are_refused_by_name(keys, words):
    with pytest.raises(ValueError, match=words) as caught:
        config_of(**keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "keys", "words"),
    [
        (3, {"offload_optimizer": {"device": "nvme"}}, "offload_optimizer.nvme_path: None; expected the absolute path"),
        (
            3,
            {"offload_optimizer": {"device": "cpu", "ratio": 0.5}},
            "offload_optimizer.ratio: not taken, it leaves a part",
        ),
        (3, {"offload_param": True}, "offload_param: True; expected a section"),
    ],
)
def test_keys_under_which_training_would_be_another_are_refused_by_name(stage, keys, words):
    with pytest.raises(ValueError, match=words) as caught:
        config_of(stage, zero_optimization=keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("communication", ["fp32", "bf16"])
def test_what_gradients_travel_in_is_always_said(communication):
    training = {"precision": "bf16", "gradient_communication": communication}
    config = deepspeed_config(tiny_config("data", training=training), 2, "cuda")
    assert config["communication_data_type"] == communication


def test_a_config_without_a_stage_shards_gradients_too():
    assert deepspeed_config(tiny_config("data"), 2, "cuda")["zero_optimization"]["stage"] == 2


def test_the_folder_for_extensions_is_private_and_goes_with_the_process_that_made_it(monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    with private_extensions():
        folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with private_extensions():
        assert Path(os.environ["TORCH_EXTENSIONS_DIR"]) != folder
    assert not folder.exists() and "TORCH_EXTENSIONS_DIR" not in os.environ


def test_a_folder_for_extensions_that_the_user_chose_stays_theirs(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with private_extensions():
        assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path)
    assert tmp_path.exists()
