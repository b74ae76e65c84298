"""What of a loaded folder bounds its texts."""

import pytest

from common.mistakes import Mistake
from launcher.serving.filling import embed
from launcher.serving.loaded import load
from model.config import ModelConfig
from tests.model.exchange.exports import export, randomised
from tests.model.exchange.families import CASES


def test_roberta_reads_no_more_than_its_table_has_rows_behind_those_of_the_padding(tmp_path, tokenizer):
    model = randomised(ModelConfig(**CASES["RobertaForMaskedLM"]), vocab_size=tokenizer.vocab_size)
    loaded = load(export(model, tmp_path / "out", tokenizer.model_path))
    assert embed(loaded, [[5] * 128]).isfinite().all()
    with pytest.raises(Mistake, match="it has 129 tokens, and the longest text of this model has 128"):
        loaded.check([5] * 129)
