"""The plan against what was measured, against published figures, and what it says of layouts."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from launcher.cli import app
from launcher.config import load_config
from launcher.plan import as_json, make, parts
from model.config import ModelConfig
from model.flops import num_parameters
from tests.model.packs import pattern_of
from training.config import ParallelConfig, RunConfig
from training.plan.activations import Rows
from training.plan.machines import machine, machines
from training.plan.memory import count, memory
from training.plan.plan import plan, search
from training.plan.speed import EFFICIENCY, work_of

RUNS = sorted((Path(__file__).parents[3] / "configs" / "runs").glob("*.yaml"))
BASE = {"num_layers": 24, "d_model": 2048, "num_heads": 16, "d_ff": 5504, "tie_embeddings": True}
MEASURED = {
    "ZeRO 1": ({}, {"zero_stage": 1}, 52.9),
    "ZeRO 2": ({}, {}, 51.3),
    "ZeRO 3": ({}, {"zero_stage": 3}, 52.1),
    "compiled": ({"compile": True}, {}, 54.5),
    "recomputed": ({"activation_checkpointing": "full"}, {}, 27.3),
}
"""GB at most on one H200, from docs/gpu.md."""


def run_of(model: dict | None = None, training: dict | None = None, **sections) -> RunConfig:
    tree = {
        "name": "run",
        "tokenizer": {"path": "none"},
        "data": {"path": "none"},
        "model": BASE | (model or {}),
        "training": {"steps": 10, "sequence_length": 2048, "global_batch_size": 16, "micro_batch_size": 8}
        | (training or {}),
    }
    return RunConfig.model_validate(tree | sections)


@pytest.mark.parametrize("name", MEASURED)
def test_a_peak_on_a_gpu_was_what_the_plan_says(name):
    model, training, gigabytes = MEASURED[name]
    found = plan(run_of(model, training), 1, machine("h200"), None, EFFICIENCY)
    assert found.memory.peak / 1e9 == pytest.approx(gigabytes, rel=0.04)
    assert f"| {gigabytes} |" in (RUNS[0].parents[2] / "docs" / "gpu.md").read_text()


@pytest.mark.parametrize(
    ("model", "training", "seconds"),
    [({}, {}, 0.736), ({}, {"zero_stage": 3}, 0.777), ({"activation_checkpointing": "full"}, {}, 0.957)],
)
def test_a_step_on_a_gpu_took_about_what_the_plan_says(model, training, seconds):
    """Forward, backward and optimizer of docs/gpu.md, which gave the efficiency."""
    found = plan(run_of(model, training), 1, machine("h200"), 620, EFFICIENCY)
    assert found.speed.seconds == pytest.approx(seconds, rel=0.07)


def test_zero_s_own_table_is_ours_but_for_gradients_of_four_bytes():
    """arXiv 1910.02054, figure 1: 7.5 billion weights on 64 GPUs, with gradients of two bytes: 31.4, 16.6, 1.9 GB."""
    sizes = {"num_layers": 72, "d_model": 2880, "num_heads": 24, "d_ff": 11520, "activation": "gelu"}
    run = run_of(sizes | {"tie_embeddings": True})
    weights = num_parameters(run.model, 32000)
    per_weight = {1: 2 + 4 + 12 / 64, 2: 2 + 16 / 64, 3: 18 / 64}
    theirs = {1: 31.4e9 / 7.5e9 + 2, 2: 16.6e9 / 7.5e9 + 2 / 64, 3: 1.88e9 / 7.5e9 + 2 / 64}
    for stage, bytes_each in per_weight.items():
        training = run.training.model_copy(update={"zero_stage": stage, "global_batch_size": 64, "micro_batch_size": 1})
        held = memory(run.model_copy(update={"training": training}), 32000, 64, Rows(2048, 0, 2048)).held
        assert held / weights == pytest.approx(bytes_each, rel=0.01)
        assert bytes_each == pytest.approx(theirs[stage], rel=0.01)


def test_gpt_3_took_3640_petaflop_days():
    """arXiv 2005.14165, table D.1: 300 billion tokens, 3,640 PF-days, counted without attention."""
    steps = round(300e9 / 2048 / 1024)
    training = {"sequence_length": 2048, "global_batch_size": 1024, "micro_batch_size": 1, "steps": steps}
    keys = {"num_layers": 96, "d_model": 12288, "num_heads": 96, "d_ff": 49152, "activation": "gelu"}
    found = plan(run_of(keys, training), 1024, machine("a100-80gb"), 2048, 0.5)
    assert found.num_weights == pytest.approx(175e9, rel=0.01)
    assert found.speed.model_flops * steps / 86400e15 == pytest.approx(3640, rel=0.05)
    assert 20 < steps * found.speed.compute_seconds / 86400 < 35, "a thousand A100 at 50 %: about a month"


@pytest.mark.parametrize("shape", ["causal", "prefix", "encoder", "encdec"])
def test_weights_are_counted_as_the_model_has_them(shape):
    model = run_of({"shape": shape, "qk_norm": True, "num_kv_heads": 4}, objective=_objective(shape)).model
    alone, four = (count(model, 32000, ParallelConfig(tensor=tensor)) for tensor in (1, 4))
    assert alone.all == num_parameters(model, 32000)
    assert alone.all / 4 < four.all < alone.all / 4 * 1.01


def _objective(shape: str) -> dict:
    return {"name": {"encoder": "masked_lm", "causal": "next_token"}.get(shape, "prefix_lm")}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_to_start_from_fits_on_the_cluster_that_it_names(path):
    nodes, gpu = re.fullmatch(r"# cluster: (\d+) x ([a-z0-9-]+)", path.read_text().splitlines()[0]).groups()
    found, _ = make(path, [], gpu=gpu, nodes=int(nodes))
    assert found.fits and found.mfu > 0.2
    assert path.stem == found.run.name
    size = re.search(r"(\d+)(m|b)", path.stem)
    wanted = float(size[1]) * {"m": 1e6, "b": 1e9}[size[2]] * (2 if path.stem.startswith("encdec") else 1)
    assert found.num_weights == pytest.approx(wanted, rel=0.3)


def test_runs_of_every_kind_are_there():
    assert {path.stem for path in RUNS} >= {
        "causal-70b",
        "prefix-1b-ul2",
        "encdec-3b-3b",
        "encoder-400m",
        "causal-7b-128k",
    }


def test_what_does_not_fit_gets_the_fewest_changes_that_make_it_fit():
    path = next(path for path in RUNS if path.stem == "causal-70b")
    ours, better = make(path, ["parallel.tensor=1"], gpu="h100-80gb", nodes=128)
    assert not ours.fits and better
    assert all(each.fits for each in better)
    seconds = [each.speed.seconds for each in better]
    assert all(later > 0.99 * earlier for earlier, later in itertools.pairwise(seconds))
    for each in better[:3]:
        assert each.run.training.global_batch_size == ours.run.training.global_batch_size


def test_each_way_to_save_memory_saves_some():
    kind, training = machine("h100-80gb"), {"global_batch_size": 64, "micro_batch_size": 4}

    def peak(model=None, stage=2, deepspeed=None, **sections) -> int:
        keys = training | {"zero_stage": stage, "deepspeed": deepspeed or {}}
        return plan(run_of(model, keys, **sections), 8, kind, None, 0.4).memory.peak

    assert peak(stage=2) < peak(stage=1)
    assert peak({"activation_checkpointing": "full"}) < peak({"activation_checkpointing": "attention"}) < peak()
    assert peak(parallel={"tensor": 2}) < peak(parallel={"tensor": 2, "sequence_parallel": False}) < peak()
    assert peak(parallel={"context": 2}) < peak()
    assert peak(deepspeed={"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}) < peak()


def test_parts_add_up_to_the_peak():
    for path in RUNS:
        found, _ = make(path, [], gpu="h100-80gb", nodes=int(path.read_text().split()[2]))
        assert sum(parts(found).values()) == found.memory.peak


def test_the_catalogue_names_sources_and_gpus_that_the_trainer_knows():
    assert len(machines()) >= 6
    for one in machines().values():
        assert one.peak_flops > 1e14 and len(one.source) > 20 and one.network_gb_per_s <= one.node_gb_per_s


def test_every_layout_that_is_searched_can_train():
    for each in search(run_of(training={"global_batch_size": 64}), 8, machine("l40s"), None, 0.4):
        RunConfig.model_validate(each.run.model_dump(mode="json"))


def shardline(*words: str):
    return CliRunner().invoke(app, ["plan", *words])


def test_the_command_speaks_to_people_and_to_scripts(tmp_path):
    path = str(next(path for path in RUNS if path.stem == "causal-7b"))
    told = shardline(path, "--gpu", "h100-80gb", "--nodes", "16", "--search")
    assert told.exit_code == 0 and "it fits" in told.output and "MFU" in told.output
    facts = json.loads(shardline(path, "--gpu", "h100-80gb", "--nodes", "16", "--json").output)
    assert facts["gpus"] == 128 and facts["fits"] is True and facts["search"]
    assert as_json(*make(Path(path), [], gpu="h100-80gb", nodes=16)) == json.dumps(facts, indent=1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--gpu", "h1000"], "--gpu: 'h1000' is not in the catalogue; known are a100-40gb"),
        (["--gpu", "h200", "--nodes", "7"], "2048 is no multiple of micro_batch_size 2 x 56 GPUs"),
        (["--gpu", "h200", "--efficiency", "2"], "--efficiency: 2 is no share"),
        (["--gpu", "h200", "--gpus", "5", "--set", "parallel.tensor=2"], "5 GPUs are no multiple of parallel.tensor 2"),
    ],
)
def test_a_mistake_is_a_sentence(words, sentence):
    path = str(next(path for path in RUNS if path.stem == "causal-7b"))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run, options = path, dict(zip(words[::2], words[1::2], strict=True))
        make(
            Path(run),
            [options["--set"]] if "--set" in options else [],
            gpu=options["--gpu"],
            nodes=int(options.get("--nodes", 1)),
            gpus=int(options["--gpus"]) if "--gpus" in options else None,
            efficiency=float(options.get("--efficiency", 0.4)),
        )


def test_yaml_of_runs_has_no_key_that_a_run_does_not_know():
    for path in RUNS:
        assert yaml.safe_load(path.read_text())["name"] == load_config(path, []).name


@pytest.mark.parametrize(("shape", "prefix"), [("causal", 0), ("encoder", 40)])
def test_pairs_within_a_window_are_those_of_the_patterns(shape, prefix):
    model = ModelConfig(num_layers=2, d_model=16, num_heads=2, d_ff=8, shape=shape, sliding_window=12)
    pattern = pattern_of([40] * 3, [prefix] * 3)
    work = work_of(model, Rows(120, 0, 40))
    assert (work.num_pairs, work.num_window_pairs) == (pattern.num_pairs, pattern.within(12).num_pairs)
