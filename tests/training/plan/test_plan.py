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
from training.plan import traffic
from training.plan.activations import Rows
from training.plan.arithmetic import work_of
from training.plan.machines import machine, machines
from training.plan.memory import Memory, count
from training.plan.plan import plan, search

RUNS = sorted((Path(__file__).parents[3] / "configs" / "runs").glob("*.yaml"))
BASE = {"num_layers": 24, "d_model": 2048, "num_heads": 16, "d_ff": 5504, "tie_embeddings": True}


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


@pytest.mark.parametrize("shape", ["causal", "prefix", "encoder", "encdec"])
def test_weights_are_counted_as_the_model_has_them(shape):
    model = run_of({"shape": shape, "qk_norm": True, "num_kv_heads": 4}, objective=_objective(shape)).model
    alone, four = (count(model, 32000, ParallelConfig(tensor=tensor)) for tensor in (1, 4))
    assert alone.all == num_parameters(model, 32000)
    assert alone.all / 4 < four.all < alone.all / 4 * 1.01


@pytest.mark.parametrize("num_layers", [1, 24])
def test_a_norm_that_first_blocks_lack_is_missing_once_a_stack(num_layers):
    keys = {"shape": "encdec", "num_layers": num_layers, "num_encoder_layers": 3, "embedding_norm": True}
    models = [
        run_of(keys | {"first_attention_norm": has}, objective=_objective("encdec")).model for has in (True, False)
    ]
    parallel, rows = ParallelConfig(), Rows(2048, 512)
    weights = [count(model, 32000, parallel).all for model in models]
    assert weights == [num_parameters(model, 32000) for model in models]
    assert weights[0] - weights[1] == 2 * 2048
    passed = [traffic.of_micro_batch(model, 32000, parallel, rows, 0, 2) for model in models]
    assert passed[0] - passed[1] == pytest.approx((2 + 3) * 2048 * (2048 + 512) * 2, rel=1e-6)


def _objective(shape: str) -> dict:
    return {"name": {"encoder": "masked_lm", "causal": "next_token"}.get(shape, "prefix_lm")}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_to_start_from_fits_on_the_cluster_that_it_names(path):
    nodes, gpu = re.fullmatch(r"# cluster: (\d+) x ([a-z0-9-]+)", path.read_text().splitlines()[0]).groups()
    found, _ = make(path, [], gpu=gpu, nodes=int(nodes))
    assert found.fits and found.mfu > 0.15
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


def test_what_the_run_tells_deepspeed_of_zero_is_in_the_plan():
    """Each key as it is taken: what it changes, and that it changes nothing else."""
    kind, training = machine("h100-80gb"), {"global_batch_size": 16, "micro_batch_size": 1, "zero_stage": 3}

    def of(stage: int = 3, **zero) -> Memory:
        most_live = {"stage3_max_live_parameters": 2 * 10**9} if stage == 3 else {}
        keys = training | {"zero_stage": stage, "deepspeed": {"zero_optimization": most_live | zero}}
        return plan(run_of(training=keys), 8, kind, None, 0.4).memory

    usual, weights = of(), num_parameters(run_of().model, 32000)
    all_cut, none_cut = of(stage3_param_persistence_threshold=0), of(stage3_param_persistence_threshold=10**9)
    norms = 2 * (2 * 24 + 1) * 2048
    assert usual.weights - all_cut.weights == norms and all_cut.weights == 2 * weights / 8
    assert all_cut.gathered == 2 * weights and usual.gathered == 2 * weights - norms and none_cut.gathered == 0
    assert none_cut.weights == 2 * weights / 8 + 2 * weights
    assert of(stage3_model_persistence_threshold=1000).weights == 2 * weights / 8 + 2 * 1000
    assert of(stage3_max_live_parameters=10**8).gathered == 2 * 10**8
    assert of(sub_group_size=10**7).gradients.in_optimizer == usual.gradients.summed + 4 * 10**7
    assert of(2, reduce_bucket_size=10**7).gradients.buckets == 2 * 10**7 * 2, "two buckets of bf16"
    assert of(2, reduce_bucket_size=10**7, overlap_comm=False).gradients.buckets == 10**7 * 2
    assert of(1, reduce_bucket_size=10**7).gradients.buckets == 2 * 10**7 * 4, "at stage 1 of the sum, which is in fp32"
    assert of(2, reduce_bucket_size=10**7, contiguous_gradients=False).gradients.buckets == 0
    assert of(zero_hpz_partition_size=2).weights == usual.weights + 2 * weights // 2
    offloaded = of(2, offload_optimizer={"device": "cpu"})
    assert offloaded.moments == offloaded.master_weights == 0 and offloaded.host > 12 * weights / 8


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_copies_for_a_checkpoint_are_what_ranks_write_between_them_on_the_host(stage):
    kind = machine("h100-80gb")
    keys = {"global_batch_size": 16, "micro_batch_size": 1, "zero_stage": stage, "precision": "fp32"}
    for away in ({}, {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}} if stage else {}):
        memory = plan(run_of(training=keys | {"deepspeed": away}), 8, kind, None, 0.4).memory
        assert memory.snapshot == 12 * num_parameters(run_of().model, 32000) / 8


def test_muon_keeps_one_moment_of_a_hidden_matrix():
    kind, training = machine("h100-80gb"), {"global_batch_size": 16, "micro_batch_size": 1}
    adamw, muon = (
        plan(run_of(training=training, optimizer={"name": name}), 8, kind, None, 0.4).memory
        for name in ("adamw", "muon")
    )
    hidden = 24 * (4 * 2048 * 2048 + 3 * 2048 * 5504)
    assert adamw.moments - muon.moments == 4 * hidden / 8


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


def test_layouts_that_the_run_s_own_keys_do_not_go_with_are_passed_over():
    keys = {"zero_stage": 3, "deepspeed": {"zero_optimization": {"stage3_max_live_parameters": 10**8}}}
    found = search(run_of(training={"global_batch_size": 64} | keys), 8, machine("h200"), None, 0.4)
    assert {each.run.training.zero_stage for each in found} == {3}


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
