from pathlib import Path

import pytest
import sentencepiece

SPECIALS = ["<mask>", "<cls>", "<sep>", "[R]", "[S]", "[X]", *(f"<extra_id_{i}>" for i in range(10))]


@pytest.fixture(scope="session")
def tokenizer_model(tmp_path_factory) -> Path:
    """A small sentencepiece model of the kind our tokenizers are."""
    lines = [
        line for file in sorted(Path(__file__).parent.rglob("*.py")) for line in file.read_text().splitlines() if line
    ]
    model = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines + ["\u4f60\u597d\uff0c\u4e16\u754c"] * 20),
        model_prefix=str(model),
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        control_symbols=SPECIALS,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.with_suffix(".model")
