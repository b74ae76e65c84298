"""Bytes that ranks send between themselves, counted collective by collective, against the plan's formula."""

import json

import pytest

from tests.training.plan.sent_ranks import MODELS, WAYS
from tests.training.runs import torchrun


@pytest.fixture(scope="module")
def found(dataset, tmp_path_factory):
    """Counted and planned bytes by name."""
    file = tmp_path_factory.mktemp("sent") / "sent.json"
    done = torchrun(2, "-m", "tests.training.plan.sent_ranks", str(file), str(dataset))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(file.read_text())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_ranks_send_to_the_byte_what_the_plan_says(found, name, way):
    counted, planned = found[f"{name}: {way}"]
    assert counted == planned > 0


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("stage", range(4))
def test_replicas_send_what_the_plan_says_but_for_the_norm_and_padding(found, stage, passes):
    counted, planned = found[f"stage {stage}, {passes} micro-batches"]
    assert counted == pytest.approx(planned, rel=0.001)
