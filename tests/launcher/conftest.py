"""Converted models of every shape, for all who ask them something."""

from pathlib import Path

import pytest

from model.config import ModelConfig
from tests.model.exchange.exports import BASE, export, randomised

SHAPES = {
    "causal": {},
    "prefix": {"shape": "prefix"},
    "encoder": {"shape": "encoder"},
    "t5": {"shape": "encdec", "positions": "t5_bias", "num_encoder_layers": 1},
    "encdec": {"shape": "encdec"},
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tokenizer):
    """An exported model of each shape, made when it is asked for."""
    made = {}

    def folder(shape: str) -> Path:
        if shape not in made:
            model = randomised(ModelConfig(**BASE | SHAPES[shape]), vocab_size=tokenizer.vocab_size)
            how = {"ends_with_eos": shape not in ("causal", "prefix"), "reads_specials": shape != "causal"}
            made[shape] = export(model, tmp_path_factory.mktemp(shape) / "out", tokenizer.model_path, **how)
        return made[shape]

    return folder
