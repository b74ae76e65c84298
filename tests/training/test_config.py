"""What a run's config refuses, and that it survives being written down."""

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from model.config import ModelConfig
from tests.training.runs import tiny_config
from training.config import RunConfig, _types_in


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"training": {"steps": True}}, "training.steps: found True; expected a number"),
        ({"training": {"zero_stage": True}}, "training.zero_stage: found True; expected a number"),
        ({"training": {"peak_tflops": False}}, "training.peak_tflops: found False; expected a number"),
        ({"model": {"d_ff": True}}, "model.d_ff: found True; expected a number"),
        ({"optimizer": {"betas": [0.9, False]}}, r"optimizer.betas: found \[0.9, False\]; expected a number"),
        ({"seed": True}, "seed: found True; expected a number"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "less than 1"),
        ({"optimizer": {"betas": [-0.1, 0.9]}}, "greater than or equal to 0"),
        ({"schedule": {"name": "constant", "min_lr_ratio": 0.1}}, "schedule.min_lr_ratio: schedule.name constant"),
        ({"training": {"sequence_length": 2**64}}, "less than or equal to 16777216"),
        ({"training": {"hang_minutes": 1e15}}, "less than or equal to 10080"),
        ({"training": {"hang_minutes": 1e-300}}, "greater than or equal to 0.01"),
        ({"training": {"steps": 10**18}}, "less than or equal to 1000000000"),
        ({"training": {"sequence_length": 2**24, "micro_batch_size": 128, "global_batch_size": 128}}, "can number"),
        ({"model": {"d_model": 10**9}}, "less than or equal to 1048576"),
        ({"model": {"num_layers": 10**9}}, "less than or equal to 4096"),
        ({"model": {"rope_theta": 1e300}}, "less than or equal to 1000000000000"),
        ({"training": {"gradient_communication": "bf16"}}, "gradient_communication: bf16 would round the gradients"),
        ({"training": {"gradient_communication": "fp16"}}, "'fp32' or 'bf16'"),
        ({"parallel": {"tensor": 4}}, "model.num_kv_heads: 2 cannot be shared evenly by parallel.tensor 4 ranks"),
        ({"parallel": {"tensor": 3}}, "model.num_heads: 4 cannot be shared evenly by parallel.tensor 3 ranks"),
        ({"parallel": {"tensor": 2}, "model": {"d_ff": 65}}, "model.d_ff: 65 cannot be shared evenly"),
        (
            {"parallel": {"tensor": 2, "context": 2}},
            "model.num_kv_heads: 2 .* by parallel.tensor 2 x parallel.context 2",
        ),
        (
            {"model": {"layer_types": ["full_attention"]}},
            "layer_types: it says which layers have a sliding_window, and",
        ),
        (
            {"model": {"layer_types": ["full_attention"], "sliding_window": 8}},
            "sliding_window: 8, and layer_types has no sliding_attention",
        ),
        (
            {"model": {"layer_types": ["sliding_attention"] * 3, "sliding_window": 8}},
            "layer_types: it names 3 layers and there are 2",
        ),
        (
            {"model": {"no_rope_layer_interval": 2, "positions": "none"}},
            "no_rope_layer_interval: only positions rope has",
        ),
        ({"model": {"no_rope_layer_interval": 3}}, "no_rope_layer_interval: 3 is more than the 2 layers there are"),
        (
            {"model": {"multi_token_depths": 1, "shape": "encoder"}},
            "multi_token_depths: 1, but shape encoder fills in places",
        ),
        (
            {"training": {"multi_token_weight": 0.1}},
            "training.multi_token_weight: it weighs the loss of model.multi_token",
        ),
        ({"model": {"t5_bias_per_layer": True}}, "t5_bias_per_layer: only positions t5_bias has tables, this is rope"),
        ({"model": {"sliding_rope_theta": 1e4}}, "sliding_rope_theta: it is of rope in layers that slide"),
        ({"model": {"qk_norm": "heads"}}, "Input should be False, True or 'all_heads'"),
        (
            {"model": {"qk_norm": "all_heads"}, "parallel": {"tensor": 2}},
            "model.qk_norm: all_heads takes a mean over heads that parallel.tensor 2 ranks would share",
        ),
        (
            {"model": {"first_attention_norm": False}},
            "first_attention_norm: false is for blocks in which embedding_norm stands for it",
        ),
        (
            {"model": {"first_attention_norm": False, "embedding_norm": True, "parallel_block": True}},
            "embedding_norm is True, parallel_block True",
        ),
        (
            {"model": {"first_attention_norm": False, "embedding_norm": True, "norm_placement": "sandwich"}},
            "first_attention_norm: only norm_placement pre can do without it, this is sandwich",
        ),
        ({"model": {"parallel_norms": 2}}, "parallel_norms: only parallel_block has a choice"),
        (
            {"model": {"parallel_block": True, "norm_placement": "post"}},
            "norm_placement: post is for parts that follow each other",
        ),
        ({"model": {"position_offset": 2}}, "position_offset: only learned positions have one, this is rope"),
        (
            {"model": {"head_transform": True, "d_model": 33, "head_dim": 8}, "parallel": {"tensor": 2}},
            "model.d_model: 33 cannot be shared evenly by parallel.tensor 2",
        ),
        ({"model": {"layer_types": ["local"], "sliding_window": 8}}, "'sliding_attention' or 'full_attention'"),
        ({"parallel": {"sequence_parallel": True}}, "sequence_parallel: it needs ranks that share layers"),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(sections, words):
    with pytest.raises(ValidationError, match=words):
        tiny_config("data", **sections)


def _numbers(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every number of a section, by its place, with what pydantic knows of it."""
    for name, field in section.model_fields.items():
        kinds = _types_in(field.annotation)
        if kinds & {int, float} and bool not in kinds:
            yield f"{prefix}{name}", field
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _numbers(kind, f"{prefix}{name}.")


def test_every_number_has_a_largest_value():
    """A choice is bounded by itself, and numbers of a list each by their own type."""
    bounds = ("le=", "lt=", "Literal")
    assert [
        place
        for place, field in _numbers(RunConfig)
        if not any(word in f"{field.annotation} {field.metadata}" for word in bounds)
    ] == []


def test_truth_values_stay_what_they_are_where_they_are_meant():
    config = tiny_config("data", model={"compile": True}, training={"deepspeed": {"wall_clock_breakdown": True}})
    assert config.model.compile is True
    assert config.training.deepspeed == {"wall_clock_breakdown": True}


@pytest.mark.parametrize("name", ["cosine", "constant"])
def test_a_config_that_was_written_down_whole_is_read_as_the_same(name):
    config = tiny_config("data", schedule={"name": name})
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.schedule.last_ratio == 0.1


def test_a_scale_of_scores_that_is_the_usual_one_is_no_other_model():
    sizes = {"num_layers": 1, "d_model": 32, "num_heads": 4, "d_ff": 48}
    assert ModelConfig(**sizes, attention_scale=8**-0.5) == ModelConfig(**sizes)
    assert ModelConfig(**sizes, attention_scale=9**-0.5).attention_scale == 9**-0.5
