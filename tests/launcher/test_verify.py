"""`shardline verify` with real ranks."""

import json

from typer.testing import CliRunner

from launcher.cli import app
from tests.training.runs import REPOSITORY

CONFIG = str(REPOSITORY / "configs" / "quickstart.yaml")


def test_a_sound_way_to_train_holds_on_real_ranks():
    keys = ["training.precision=bf16", "training.zero_stage=3", "model.shape=encdec", "objective.name=span_corruption"]
    done = CliRunner().invoke(app, ["verify", CONFIG, "--json", *(word for key in keys for word in ("--set", key))])
    assert done.exit_code == 0, done.output
    (verdict,) = json.loads(done.stdout)
    assert verdict["holds"] and verdict["facts"]["optimizer"] == "DeepSpeedZeroOptimizer_Stage3"
    assert [each["what"] for each in verdict["findings"]] == [
        "loss",
        "gradient norm",
        "first moment",
        "second moment",
        "weight, in learning rates",
        "loss against fp64",
        "gradients against fp64",
    ]


def test_what_the_ranks_refuse_is_said_in_their_words():
    done = CliRunner().invoke(app, ["verify", CONFIG, "--set", "model.attention_backend=flash"])
    assert done.exit_code != 0
    assert "model.attention_backend: flash" in str(done.exception)
