"""Every key of DeepSpeed's zero_optimization: taken where it decides something, and refused by name elsewhere."""

from pathlib import Path

import pytest
from deepspeed.runtime.config import _REMOVED_ZERO_CONFIG_KEYS
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from common.mistakes import Mistake
from tests.training.runs import tiny_config
from training.deepspeed_config import deepspeed_config
from training.offload import check_buffer_size
from training.verify.small import small
from training.zero_keys import DEFAULTS, REFUSED, TAKEN

PAGE = Path(__file__).parents[2] / "docs" / "deepspeed.md"
FIELDS = {field.alias or name: field for name, field in DeepSpeedZeroConfig.model_fields.items()}


def config_of(stage: int, keys: dict, ranks: int = 2, device: str = "cpu", **sections) -> dict:
    training = {"zero_stage": stage, "deepspeed": {"zero_optimization": keys}}
    run = tiny_config("data", training=training, **sections)
    return deepspeed_config(run, ranks // run.parallel.num_sharing, device)["zero_optimization"]


def refusal(stage: int, keys: dict, **how) -> str:
    with pytest.raises(ValueError) as caught:
        config_of(stage, keys, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def value_of(name: str):
    offloaded = {"device": "cpu"}
    given = {"offload_optimizer": offloaded, "offload_param": offloaded, "overlap_comm": True}
    return given.get(name, FIELDS[name].default)


def test_every_key_of_deepspeeds_is_either_taken_or_refused():
    assert {*TAKEN, *REFUSED} == {*FIELDS, *_REMOVED_ZERO_CONFIG_KEYS} - {"stage"}
    assert not TAKEN.keys() & REFUSED.keys()
    assert {name: FIELDS[name].default for name in DEFAULTS} == DEFAULTS
    assert {other for key in TAKEN.values() for other in key.beside} == set(DEFAULTS)


def test_the_page_says_of_every_key_what_the_code_does():
    page = PAGE.read_text(encoding="utf-8")
    for name, key in TAKEN.items():
        assert f"| `{name}` | {', '.join(map(str, key.stages))} | {key.decides} |" in page, name
    for name, why in REFUSED.items():
        assert f"| `{name}` | {why} |" in page, name


@pytest.mark.parametrize("name", TAKEN)
def test_a_key_is_taken_at_its_stages_and_refused_at_the_others_by_their_numbers(name):
    model = {"compile": True} if name == "memory_efficient_linear" else {}
    for stage in range(4):
        if stage in TAKEN[name].stages:
            assert config_of(stage, {name: value_of(name)}, model=model)[name] == value_of(name)
        else:
            words = refusal(stage, {name: value_of(name)}, model=model)
            stages = " or ".join(map(str, TAKEN[name].stages))
            assert f"{name}: it decides {TAKEN[name].decides}, and nothing at training.zero_stage {stage};" in words
            assert f"choose stage {stages}, or remove this key" in words


@pytest.mark.parametrize("name", REFUSED)
def test_a_key_that_would_do_nothing_or_another_thing_is_refused_with_why(name):
    for stage in (1, 3):
        assert f"zero_optimization.{name}: not taken, {REFUSED[name]}; remove this key" in refusal(stage, {name: 1})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"max_live_parameters": 5}, "not a key of zero_optimization here; did you mean stage3_max_live_parameters?"),
        ({"overlap_coms": True}, "did you mean overlap_comm?"),
        ({"xyz": 5}, "known are contiguous_gradients, enable_sanity_checks"),
        ({"reduce_scatter": False, "contiguous_gradients": False}, "nothing beside contiguous_gradients: False"),
        (
            {"stage3_prefetch_bucket_size": 5, "stage3_allgather_sequential": True},
            "stage3_prefetch_bucket_size: it decides nothing beside stage3_allgather_sequential: True; remove one",
        ),
        ({"memory_efficient_linear": False}, "set model.compile or remove this key"),
    ],
)
def test_keys_that_are_unknown_or_decide_nothing_beside_another_are_refused(keys, words):
    assert words in refusal(3, keys)


@pytest.mark.parametrize("name", ["reduce_scatter", "use_multi_rank_bucket_allreduce"])
def test_what_is_about_buckets_has_gradients_copied_into_them_on_a_cpu_too(name):
    assert config_of(2, {name: False})["contiguous_gradients"] is True
    assert config_of(2, {})["contiguous_gradients"] is False


def test_copies_among_neighbours_need_groups_that_share_no_layers():
    keys = {"zero_hpz_partition_size": 2}
    config_of(3, keys, ranks=4)
    assert "who share layers under parallel.tensor 2" in refusal(3, keys, ranks=4, parallel={"tensor": 2})
    words = refusal(3, {"zero_hpz_partition_size": 3}, ranks=4)
    assert "groups of 3 cannot be made of 4 ranks; use a divisor" in words


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reduce_bucket_size", "1e9"),
        ("reduce_bucket_size", 0),
        ("stage3_max_live_parameters", None),
        ("stage3_max_live_parameters", -5),
        ("zero_hpz_partition_size", 2.0),
        ("zero_hpz_partition_size", True),
        ("overlap_comm", 1),
        ("overlap_comm", "yes"),
    ],
)
def test_a_value_of_another_type_or_size_is_refused(name, value):
    assert f"zero_optimization.{name}: found " in refusal(3, {name: value})


def test_a_buffer_that_is_smaller_than_a_weight_is_refused_with_the_size_it_needs():
    section = {"device": "nvme", "nvme_path": "/local/nvme"}
    training = {"zero_stage": 3, "deepspeed": {"zero_optimization": {"offload_param": section}}}
    run = tiny_config("data", training=training)
    check_buffer_size(run, 100_000_000)
    with pytest.raises(Mistake, match=r"buffer_size: 100000000 elements, .* has 131334144; set it to that or more"):
        check_buffer_size(run, 131_334_144)
    for key in ("buffer_size", "buffer_count"):
        assert f"offload_param.{key}: 0; expected 1 or more" in refusal(3, {"offload_param": {**section, key: 0}})


def test_a_run_made_small_keeps_as_many_neighbours_as_there_may_be(tmp_path):
    keys = {"zero_stage": 3, "deepspeed": {"zero_optimization": {"zero_hpz_partition_size": 8}}}
    made = small(tiny_config("data", training=keys), tmp_path, 4)
    assert made.training.deepspeed["zero_optimization"] == {"zero_hpz_partition_size": 4}
    made = small(tiny_config("data", training=keys), tmp_path, 3)
    assert made.training.deepspeed["zero_optimization"] == {"zero_hpz_partition_size": 1}
