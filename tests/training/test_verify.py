"""What `shardline verify` would find: faults planted in the plain loop, which then stands for a faulty engine."""

import functools

import pytest
import torch

from launcher import models
from launcher.verify import cases_of
from model.network import blocks
from tests.training.planted import (
    AllInOne,
    LastDropped,
    LastLeaks,
    Narrow,
    NormOfAPart,
    NotOrthogonal,
    OneRankAlone,
    PartsOfRanks,
    WithPadding,
)
from training.config import RunConfig
from training.verify.compare import ROUNDED, SAME, compare, compare_kernels, limits_of
from training.verify.grid import grid
from training.verify.plain import Rounded, Sum, loader_of, train_plainly
from training.verify.small import LR, small, write_documents

STEPS = 2
CASES = dict(grid(2))
NAME = "causal, ZeRO 2, {}, accumulation 4, clipping 0.05"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    return folder, write_documents(folder)


@pytest.fixture(scope="module")
def trained(data):
    """The plain loop of a precision with a way to add up."""
    folder, manifest = data
    torch.set_num_threads(1)

    def train(precision, addition=None, given=None):
        config = small(CASES[NAME.format(precision)], folder, 2)
        return train_plainly(config, manifest, num_ranks=2, steps=STEPS, lr=LR, addition=addition, given=given)

    sound = functools.cache(train)
    return lambda precision, addition=None, given=None: (
        train(precision, addition, given) if addition or given else sound(precision)
    )


FAULTS = {
    LastDropped: "first moment",
    LastLeaks: "first moment",
    Narrow: "first moment",
    Rounded: "first moment",
    OneRankAlone: "first moment",
    NormOfAPart: "gradient norm",
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_named(trained, precision, fault):
    faulty = trained(precision, fault())
    plain = trained(precision, Sum(), given=faulty.states)
    found = {each.what: each for each in compare(faulty, plain, SAME)}
    assert not found[FAULTS[fault]].holds
    assert found[FAULTS[fault]].worst > 5 * found[FAULTS[fault]].allowed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fault", [NotOrthogonal, WithPadding, AllInOne, PartsOfRanks])
def test_a_planted_fault_of_muon_is_found_and_named(data, precision, fault):
    folder, manifest = data
    config = small(CASES[f"{NAME.format(precision)}, muon"], folder, 2)
    how = {"num_ranks": 2, "steps": 1, "lr": LR}
    faulty = train_plainly(config, manifest, direction=fault(), **how)
    found = {
        each.what: each for each in compare(faulty, train_plainly(config, manifest, **how), limits_of(config, "cpu"))
    }
    weight = found.pop("weight, in learning rates")
    assert not weight.holds and weight.worst > 3 * weight.allowed
    assert weight.where.endswith((".qkv.weight", ".output.weight", ".gate_up.weight", ".down.weight"))
    assert all(each.holds for each in found.values()), "gradients and moments are sound"


def test_without_a_fault_everything_holds_step_by_step(trained):
    whole = trained("bf16")
    assert all(each.worst == 0 for each in compare(whole, trained("bf16", given=whole.states), SAME))


def test_rounding_between_ranks_is_within_its_own_limits_alone(trained):
    rounded = trained("bf16", Rounded())
    assert all(each.holds for each in compare(rounded, trained("bf16", Sum(), given=rounded.states), ROUNDED))


@pytest.mark.parametrize("shape", ["causal", "prefix", "encdec", "encoder"])
def test_kernels_are_held_against_fp64_and_one_that_forgets_documents_is_found(data, shape, monkeypatch):
    folder, manifest = data
    name = next(name for name in CASES if name.startswith(f"{shape}, ZeRO 2, fp32, accumulation 4"))
    config = small(CASES[name], folder, 1)
    assert all(each.holds for each in compare_kernels(config, manifest, "cpu"))
    attend = blocks.attend

    def forgetful(q, k, v, pattern, backend, *rest):
        found = attend(q, k, v, pattern, backend, *rest)
        return found if backend == "reference" else 0 * found + v.mean()

    monkeypatch.setattr(blocks, "attend", forgetful)
    assert not all(each.holds for each in compare_kernels(config, manifest, "cpu"))


@pytest.mark.parametrize("name", models.names())
def test_every_preset_is_made_small_and_stays_what_it_is(name, tmp_path):
    model = models.keys(name)
    objective = {"causal": "next_token", "prefix": "prefix_lm", "encoder": "masked_lm", "encdec": "span_corruption"}
    tree = {"name": "big", "tokenizer": {"path": "none"}, "data": {"path": "none"}, "model": model}
    tree |= {"objective": {"name": objective[model.get("shape", "causal")]}}
    tree["training"] = {"steps": 9, "sequence_length": 512, "global_batch_size": 512, "micro_batch_size": 4}
    big = RunConfig.model_validate(tree)
    made = small(big, tmp_path, 2)
    changed = {"num_layers", "num_encoder_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff"}
    changed |= {"vocab_size", "max_positions", "sliding_window", "layer_types", "no_rope_layer_interval"}
    kept = set(type(big.model).model_fields) - changed
    assert {key: getattr(made.model, key) for key in kept} == {key: getattr(big.model, key) for key in kept}
    assert (made.model.kv_heads == made.model.num_heads) == (big.model.kv_heads == big.model.num_heads)
    assert _kinds(made.model) == _kinds(big.model)
    assert made.training.global_batch_size == 2 * 2 * 4


def _kinds(config):
    """What kinds of layers there are: whether they slide, and whether some have no positions."""
    layers = range(config.num_layers)
    return set(map(config.slides, layers)), len(set(map(config.rotates, layers)))


@pytest.mark.parametrize("shape", ["causal", "prefix", "encdec", "encoder"])
def test_there_are_documents_for_as_many_ranks_as_a_job_has(tmp_path, shape):
    name = next(name for name in CASES if name.startswith(f"{shape}, ZeRO 2, fp32, accumulation 4"))
    for ranks in (1, 64, 1024):
        config = small(CASES[name], tmp_path / str(ranks), ranks)
        manifest = write_documents(tmp_path / str(ranks), config.training.global_batch_size)
        with loader_of(config, manifest, ranks - 1, ranks) as loader:
            assert len(next(loader)) == 4


@pytest.mark.parametrize(("grid", "overrides"), [(False, []), (True, ["training.steps=1"])])
def test_what_to_verify_must_be_clear(grid, overrides):
    with pytest.raises(ValueError, match="--grid"):
        cases_of(None, overrides, grid=grid)
