"""A run that mixes sources: what it counts and keeps, and how it goes on with another mix."""

import dataclasses
import json

import pytest

from data_pipeline.reading.mix import Mix, MixedSource, Since, Stage, gone_on_with
from tests.training.runs import events_of, lone_rank, save_config, steps_of, tiny_config, write_dataset
from tests.training.state.test_identity import identity_of
from training.events import EventLog
from training.jumps import Jump, jumped, note_jump, read_jumps
from training.mixing import change_in_words, read
from training.setup import check
from training.spikes import GuardState
from training.state.identity import FORMAT, WITHOUT_MIX, RunState, dump_state, parse_state

WEB, BOOKS = (MixedSource(name, f"{name} tokens", f"{name} data", 100) for name in ("web", "books"))


def mix_of(*weights):
    return Mix((WEB, BOOKS), (Stage(0, tuple(map(float, weights))),))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    home = tmp_path_factory.mktemp("datasets")
    for number, name in enumerate(("main", "other")):
        (home / name).mkdir()
        write_dataset(home / name, seed=number)
    return home


def config_of(datasets, steps, runs_dir, **weights):
    """A run on the dataset `main`, without a mix unless there are weights."""
    sources = [{"name": name, "path": str(datasets / name), "weight": weight} for name, weight in weights.items()]
    mix = {"sources": sources} if sources else None
    config = tiny_config(datasets / "main", runs_dir=str(runs_dir), training={"steps": steps, "global_batch_size": 8})
    return with_data(config, mix=mix)


def with_data(config, **keys):
    """The config with other keys of `data`, checked."""
    tree = config.model_dump()
    return type(config).model_validate({**tree, "data": {**tree["data"], **keys}})


def test_a_run_without_a_mix_goes_on_with_one_counts_its_sources_and_is_told_of_it(datasets, tmp_path):
    folder = save_config(config_of(datasets, 4, tmp_path), tmp_path / "run")
    lone_rank("training.worker", str(folder), gpu=False)
    state = json.loads((folder / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert state["format"] == WITHOUT_MIX and "mix" not in state and "sources" not in steps_of(folder)[-1]
    save_config(config_of(datasets, 8, tmp_path, main=3, other=1), folder)
    lone_rank("training.worker", str(folder), gpu=False)
    drawn = steps_of(folder)[-1]["sources"]
    assert (drawn["main"]["samples"], drawn["other"]["samples"]) == (32 + 24, 8)
    assert drawn["other"]["tokens"] == 8 * 32 and 0 < drawn["other"]["epochs"] < 0.1
    (event,) = events_of(folder, "mix changed")
    assert event["reason"].startswith("from sample 32 on the mix is another one: main 75.00%, other 25.00%")
    evaluation = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1]["evaluation"]
    assert set(evaluation["sources"]) == {"main", "other"}
    state = json.loads((folder / "checkpoints" / "step-00000008" / "state.json").read_text())
    assert state["format"] == FORMAT and [entry["first"] for entry in state["mix"]] == [0, 32]
    check(config_of(datasets, 12, tmp_path, main=1, other=1), 1)


def test_limits_that_end_all_sources_before_the_last_step_are_refused(datasets, tmp_path):
    config = config_of(datasets, 20, tmp_path, main=1, other=1)
    sources = [
        {**source.model_dump(), "max_samples": limit}
        for source, limit in zip(config.data.mix.sources, (50, 30), strict=True)
    ]
    config = with_data(config, mix={"sources": sources})
    with pytest.raises(ValueError, match=r"every source has reached its limit after step 10, and the run has 20"):
        check(config, 1)


def test_an_objective_for_a_source_that_is_not_there_is_refused(datasets, tmp_path):
    config = config_of(datasets, 4, tmp_path, main=1, other=1)
    objective = {"name": "mixture", "parts": [{"name": "next_token", "sources": ["news"]}, {"name": "prefix_lm"}]}
    config = type(config).model_validate({**config.model_dump(), "objective": objective})
    with pytest.raises(ValueError, match=r"parts\[0\].sources: 'news' is no source of this run; they are main, other"):
        read(config)


def test_a_checkpoint_keeps_the_mixes_of_its_run_and_says_so_by_its_format(tmp_path):
    identity = identity_of(tiny_config(tmp_path))
    history = gone_on_with(gone_on_with((), mix_of(3, 1), 0), mix_of(0.1, 0.7), 40)
    state = RunState(5, 80, 900, mix=history)
    written = dump_state(state, identity)
    assert json.loads(written)["format"] == FORMAT
    assert parse_state(written, tmp_path).state == state
    assert json.loads(dump_state(dataclasses.replace(state, mix=()), identity))["format"] == WITHOUT_MIX


def test_what_a_jump_leaves_out_counts_as_drawn_from_the_mix_that_the_run_had(tmp_path):
    older, newer = (Since(0, mix_of(1, 1)),), (Since(0, mix_of(1, 1)), Since(40, mix_of(1, 0)))
    EventLog(tmp_path, 0)
    note_jump(tmp_path, Jump(3, 64, "spikes", [dataclasses.asdict(entry) for entry in newer]), "")
    jumps = read_jumps(tmp_path)
    state = jumped(RunState(2, 16, 100, mix=older), jumps)
    assert (state.samples_consumed, state.mix) == (64, newer)
    known = RunState(9, 80, 100, GuardState(jumps=1), mix=older)
    assert jumped(known, jumps).mix == older


def test_a_change_of_mix_is_told_once():
    first = gone_on_with((), mix_of(3, 1), 0)
    second = gone_on_with(first, mix_of(1, 3), 40)
    assert change_in_words((), first) == change_in_words(second, second) == ""
    assert change_in_words(first, second).startswith(
        "from sample 40 on the mix is another one: web 25.00%, books 75.00%"
    )
