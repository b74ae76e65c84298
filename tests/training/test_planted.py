"""What `shardline verify` says of a real engine with a fault planted in it: every one of them left losses plausible."""

import pytest
import yaml

from launcher import verify
from tests.training.planted_ranks import FAULTS
from tests.training.runs import torchrun
from training.verify.grid import grid
from training.verify.small import small, write_documents

RANKS = 2
WHERE = {
    "last-micro-batch-dropped": "gradient norm",
    "sum-in-bf16": "first moment",
    "residual-once-per-rank": "loss",
    "muon-without-orthogonalisation": "weight, in learning rates",
    "muon-with-padding": "weight, in learning rates",
    "norm-counts-copies": "gradient norm",
    "rows-not-summed": "first moment",
}
"""Where each shows at the latest."""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    manifest, ways = write_documents(folder / "data"), dict(grid(RANKS))
    configs, folders = {}, {}
    for name, (way, *_) in FAULTS.items():
        config = ways[way.format("fp32, accumulation 4, clipping 0.05")].model_copy(update={"name": name})
        configs[name], folders[name] = small(config, folder / "data", RANKS), folder / name
        folders[name].mkdir()
        (folders[name] / "config.yaml").write_text(yaml.safe_dump(configs[name].model_dump(mode="json")))
    done = torchrun(RANKS, "-m", "tests.training.planted_ranks", str(folder / "data"), *map(str, folders.values()))
    assert done.returncode == 0, done.stderr[-4000:]
    return {verdict.name: verdict for verdict in verify._verdicts(configs, folders, manifest, RANKS)}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_engine_is_found_and_named(verdicts, fault):
    verdict = verdicts[fault]
    found = {each.what: each for each in verdict.findings}
    assert not verdict.holds
    assert found[WHERE[fault]].worst > 3 * found[WHERE[fault]].allowed, found
    assert all(each.holds for what, each in found.items() if "fp64" in what), "the kernels are sound"
    assert max(found["loss"].worst, 1e-9) < 1 or fault == "residual-once-per-rank", "the loss alone would not tell"
