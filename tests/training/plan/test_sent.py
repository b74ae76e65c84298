"""Bytes that ranks send between themselves, counted collective by collective, against the plan's formula."""

import json

import pytest

from tests.training.plan.sent_ranks import MODELS, WAYS
from tests.training.runs import torchrun


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Counted and planned bytes by name."""
    file = tmp_path_factory.mktemp("sent") / "sent.json"
    done = torchrun(2, "-m", "tests.training.plan.sent_ranks", str(file))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(file.read_text())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_ranks_send_to_the_byte_what_the_plan_says(found, name, way):
    counted, planned = found[f"{name}: {way}"]
    assert counted == planned > 0
