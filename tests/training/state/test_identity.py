"""What a checkpoint says of its run, who may go on with it, and what other versions have written."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import ModelConfig
from tests.training.runs import tiny_config
from tests.training.state.ranks import ALONE, IDENTITY, chosen, save_step
from training.spikes import GuardState
from training.state import identity as identities
from training.state.choosing import choose
from training.state.folder import step_of, superseded
from training.state.identity import (
    CUT,
    EXECUTION_KEYS,
    FORMAT,
    WITHOUT_MIX,
    RunIdentity,
    RunState,
    check_identity,
    dump_state,
    parse_state,
    read_saved,
)

OTHER = {
    "precision": "bf16",
    "data": {"tokens": "e" * 32},
    "tokenizer": "u" * 32,
    "order": {**IDENTITY.order, "seed": 2},
    "model": {**IDENTITY.model, "d_model": 64},
    "optimizer": "muon",
}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(RunIdentity) if f.name not in CUT])
def test_a_run_that_differs_is_refused_with_both_values_named(tmp_path, field):
    check_identity(IDENTITY, IDENTITY, tmp_path)
    then, now = getattr(IDENTITY, field), OTHER[field]
    if isinstance(now, dict):
        key = next(key for key in now if now[key] != then[key])
        then, now, named = then[key], now[key], f"{field}.{key}"
    else:
        named = field
    with pytest.raises(ValueError) as caught:
        check_identity(IDENTITY, dataclasses.replace(IDENTITY, **{field: OTHER[field]}), tmp_path)
    message = str(caught.value)
    assert f"made with {named} {then!r}, this run has {now!r}" in message and "\n" not in message


def test_another_stage_and_number_of_ranks_may_go_on(tmp_path):
    check_identity(IDENTITY, dataclasses.replace(IDENTITY, world_size=2, zero_stage=3), tmp_path)


def identity_of(config) -> RunIdentity:
    """As training.setup says it, without a dataset."""
    order = {"seed": 1, "sequence_length": 32, "target_length": None, "packing": "windows"}
    order["objective"] = config.objective.model_dump(mode="json")
    model = config.model.model_dump(mode="json", exclude=EXECUTION_KEYS) | {"vocab_size": 307}
    return RunIdentity(1, 1, "fp32", "data", "tokenizer", order, model)


MODEL_DEFAULTS = sorted(
    name
    for name, field in ModelConfig.model_fields.items()
    if not field.is_required() and name not in {*EXECUTION_KEYS, "num_kv_heads"}
)


ADDED_KEYS = [*(("model", name) for name in MODEL_DEFAULTS), ("order", "target_length"), ("order", "packing")]


@pytest.mark.parametrize("section, key", ADDED_KEYS)
def test_a_key_that_came_after_the_checkpoint_has_its_default_there(tmp_path, section, key):
    now = identity_of(tiny_config(tmp_path))
    then = dataclasses.replace(now, **{section: {k: v for k, v in getattr(now, section).items() if k != key}})
    saved = parse_state(dump_state(RunState(), then), tmp_path)
    assert saved.identity == now
    check_identity(saved.identity, now, tmp_path)


def test_what_later_steps_are_judged_by_comes_back_to_the_last_bit(tmp_path):
    now = identity_of(tiny_config(tmp_path))
    state = RunState(9, 144, 900, GuardState((1 / 3, 2.5e-300), (0.1, 7.0), in_a_row=2, jumps=1))
    assert parse_state(dump_state(state, now), tmp_path).state == state


def test_guards_of_an_older_and_of_a_later_version_are_read(tmp_path):
    facts = json.loads(dump_state(RunState(9), identity_of(tiny_config(tmp_path))))
    assert set(facts["state"]) == {"step", "samples_consumed", "tokens_consumed"}  # all that older versions know
    facts["guards"] = {"in_a_row": 2, "of a later version": [1]}
    assert parse_state(json.dumps(facts).encode(), tmp_path).state == RunState(9, guards=GuardState(in_a_row=2))
    del facts["guards"]
    assert parse_state(json.dumps(facts).encode(), tmp_path).state == RunState(9)


def test_keys_of_an_objective_and_its_parts_that_came_later_have_their_defaults(tmp_path):
    objective = {"name": "mixture", "parts": [{"name": "span_corruption", "weight": 2}, {"name": "prefix_lm"}]}
    now = identity_of(tiny_config(tmp_path, objective=objective, model={"shape": "encdec", "num_encoder_layers": 1}))
    then = dataclasses.replace(now, order={**now.order, "objective": objective})
    assert parse_state(dump_state(RunState(), then), tmp_path).identity == now


def test_a_later_key_that_is_set_to_another_value_now_is_named(tmp_path):
    then, now = (identity_of(tiny_config(tmp_path, model={"qk_norm": value})) for value in (False, True))
    del then.model["qk_norm"]
    saved = parse_state(dump_state(RunState(), then), tmp_path)
    with pytest.raises(ValueError, match=r"made with model.qk_norm False, this run has True"):
        check_identity(saved.identity, now, tmp_path)


def test_a_key_that_only_the_checkpoint_knows_is_named(tmp_path):
    now = identity_of(tiny_config(tmp_path))
    then = dataclasses.replace(now, model={**now.model, "gone": 3})
    saved = parse_state(dump_state(RunState(), then), tmp_path)
    with pytest.raises(ValueError, match=r"made with model.gone 3, this run has no such key"):
        check_identity(saved.identity, now, tmp_path)


def test_a_checkpoint_of_a_later_format_is_refused_in_a_sentence_not_passed_over(tmp_path, monkeypatch):
    save_step(tmp_path, 10)
    with monkeypatch.context() as patch:
        patch.setattr(identities, "WITHOUT_MIX", FORMAT + 1)
        save_step(tmp_path, 20)
    with pytest.raises(
        ValueError, match=rf"step-00000020: written in format {FORMAT + 1}, .* reads formats up to {FORMAT}; go on with"
    ):
        choose(tmp_path, ALONE)


def test_a_checkpoint_of_deepspeeds_pickles_is_refused_by_the_command_that_converts_it(tmp_path):
    folder = save_step(tmp_path, 10)
    facts = json.loads((folder / "state.json").read_text())
    del facts["format"]
    (folder / "state.json").write_text(json.dumps(facts))
    (folder / "checksums.json").write_text(json.dumps({"state.json": "0" * 32}))
    for read in (lambda: choose(tmp_path, ALONE), lambda: read_saved(folder)):
        with pytest.raises(ValueError, match=rf"'shardline checkpoint upgrade {tmp_path} --trust'") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_the_format_number_is_damage_and_no_other_format(tmp_path):
    save_step(tmp_path, 10)
    path = save_step(tmp_path, 20) / "state.json"
    path.write_text(path.read_text().replace(f'"format": {WITHOUT_MIX}', f'"format": {WITHOUT_MIX + 2}'))
    assert chosen(tmp_path).folder.name == "step-00000010"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x"}', '{"format": 1, "state": 3}', "\xff"])
def test_a_state_that_is_none_is_a_value_error_and_nothing_else(tmp_path, text):
    with pytest.raises(ValueError):
        parse_state(text.encode("latin-1"), tmp_path)


@given(st.sets(st.integers(1, 200), min_size=1, max_size=20), st.integers(1, 5), st.none() | st.integers(1, 50))
def test_retention_keeps_the_newest_and_the_milestones_and_nothing_else(tmp_path_factory, steps, keep, every):
    root = tmp_path_factory.getbasetemp()
    gone = {step_of(path) for path in superseded([root / f"step-{step:08d}" for step in steps], keep, every)}
    newest = set(sorted(steps)[-keep:])
    milestones = {step for step in steps if every and step % every == 0}
    assert gone == steps - newest - milestones
