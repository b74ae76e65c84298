"""What tests of GGUF files share: models of every shape it has a place for, and their files."""

from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizing.sentence_pieces import SentencePieceTokenizer
from launcher.gguf import texts_of, vocabulary_of
from model.config import ModelConfig
from model.exchange.convert import ExportSpec, TokenizerSpec
from model.exchange.gguf.convert import GgufSpec, export_gguf
from tests.model.exchange.exports import BASE, START, randomised

LLAMA3 = {"kind": "llama3", "factor": 8.0, "original_max_positions": 16}
CASES = {
    "causal": {},
    "tied": {"tie_embeddings": True, "head_dim": 12, "rope_theta": 500000.0, "norm_eps": 1e-6},
    "biases": {"bias": True, "rope_scaling": LLAMA3},
    "biased_queries": {"qkv_bias": True, "num_kv_heads": 1, "rope_scaling": {"kind": "linear", "factor": 4.0}},
    "qwen3": {"qk_norm": True, "head_dim": 14},
    "prefix": {"shape": "prefix", "head_dim": 12},
    "encoder": {"shape": "encoder", "tie_embeddings": True},
    "t5": {"shape": "encdec", "positions": "t5_bias", "activation": "relu", "num_encoder_layers": 3},
    "t5_geglu": {"shape": "encdec", "positions": "t5_bias", "activation": "geglu", "tie_embeddings": True},
}


def gguf_model(case: str, **changes):
    """A small model of one of `CASES`."""
    return randomised(ModelConfig(**BASE | CASES[case] | changes))


def write(model, out, tokenizer_model, **changes):
    """Exports all of a model's weights, or what `changes` says; what it was checked by."""
    state = changes.pop("state") if "state" in changes else model.state_dict()
    tokenizer = SentencePieceTokenizer(tokenizer_model, TokenizerConfig(path=str(tokenizer_model)))
    ids = changes.pop("ids", {"bos_id": START, "eos_id": 2, "pad_id": 3})
    plain = ExportSpec(
        model.config, model.vocab_size, max_positions=128, tokenizer=TokenizerSpec(tokenizer_model), source="x", **ids
    )
    facts = {"vocabulary": vocabulary_of(tokenizer), "texts": texts_of(tokenizer, ["some text"])} | changes
    return export_gguf(state, GgufSpec(plain, **facts), out)
