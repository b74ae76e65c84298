"""What `shardline data inspect` prints of a dataset, as a run of some shape will read it."""

import pytest

from launcher.config import save_config
from launcher.inspection import look, show
from tests.training.runs import tiny_config


@pytest.mark.parametrize(
    ("shape", "objective", "words"),
    [
        ("causal", "next_token", ["32 positions (", "samples of 32 tokens"]),
        (
            "encdec",
            "span_corruption",
            ["32 positions of the encoder (", " of the decoder (", "decoder reads and predicts"],
        ),
    ],
)
def test_samples_are_shown_with_the_rows_of_their_shape(
    real_dataset, tokenizer_config, tmp_path, capsys, shape, objective, words
):
    config = tiny_config(
        real_dataset,
        tokenizer=tokenizer_config.model_dump(),
        model={"shape": shape},
        objective={"name": objective},
    )
    save_config(config, tmp_path / "run.yaml")
    facts = look(real_dataset, None, tmp_path / "run.yaml", "train", 1, 2048)
    show(facts)
    printed = capsys.readouterr().out
    assert all(each in printed for each in words)
    if facts.target_length:
        assert f"and {facts.target_length} of the decoder" in printed and f"samples of {facts.window} tokens" in printed


def test_the_mix_of_a_run_is_shown_with_what_it_will_draw(real_dataset, tokenizer_config, tmp_path, capsys):
    config = tiny_config(real_dataset, tokenizer=tokenizer_config.model_dump(), training={"steps": 20_000})
    mix = {"sources": [{"name": "all-of-it", "path": str(real_dataset), "weight": 2}]}
    tree = config.model_dump()
    config = type(config).model_validate({**tree, "data": {**tree["data"], "mix": mix}})
    save_config(config, tmp_path / "run.yaml")
    show(look(real_dataset, None, tmp_path / "run.yaml", "train", 0, 2048))
    printed = " ".join(capsys.readouterr().out.split())
    assert "all-of-it" in printed and "100.00%" in printed and "320,000" in printed
    assert "warning: the run goes through 'all-of-it'" in printed
