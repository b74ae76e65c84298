"""What tests of GGUF files share: models of every shape it has a place for, and their files."""

from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizing.sentence_pieces import SentencePieceTokenizer
from launcher.gguf import texts_of, vocabulary_of
from model.config import ModelConfig
from model.exchange.convert import ExportSpec, TokenizerSpec
from model.exchange.gguf.convert import GgufSpec, export_gguf
from tests.model.exchange.exports import BASE, START, randomised

LLAMA3 = {"kind": "llama3", "factor": 8.0, "original_max_positions": 16}
LAYER_NORM = {"norm": "layernorm", "bias": True, "activation": "gelu_tanh"}
LEARNED = {"positions": "learned", "max_positions": 110}
COHERE = {"norm": "layernorm", "parallel_block": True, "tie_embeddings": True}
OUTPUT_NORMS = {"norm_placement": "output", "qk_norm": "all_heads"}
GEMMA = {"norm": "rmsnorm_1p", "activation": "geglu", "embedding_scale": BASE["d_model"] ** 0.5, "head_dim": 12}
GEMMA3 = GEMMA | {"norm_placement": "sandwich", "qk_norm": True}
GEMMA2 = {"norm_placement": "sandwich", "attention_softcap": 0.7, "logit_softcap": 5.0, "tie_embeddings": True}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {"kind": "linear", "factor": 4.0}
CASES = {
    "causal": {},
    "tied": {"tie_embeddings": True, "head_dim": 12, "rope_theta": 500000.0, "norm_eps": 1e-6},
    "biases": {"bias": True, "rope_scaling": LLAMA3},
    "biased_queries": {"qkv_bias": True, "num_kv_heads": 1, "rope_scaling": LINEAR},
    "qwen3": {"qk_norm": True, "head_dim": 14},
    "prefix": {"shape": "prefix", "head_dim": 12},
    "encoder": {"shape": "encoder", "tie_embeddings": True},
    "phi3": {"rope_fraction": 0.5},
    "smollm3": {"no_rope_layer_interval": 4, "num_layers": 4},
    "windows": SLIDING | {"num_layers": 3, "bias": True, "no_rope_layer_interval": 3, "rope_scaling": LLAMA3},
    "all_slide": {"sliding_window": 8, "head_dim": 12, "tie_embeddings": True},
    "no_rope": {"no_rope_layer_interval": 2, "rope_scaling": LINEAR},
    "exaone4": {"norm_placement": "output", "qk_norm": True},
    "olmo2": OUTPUT_NORMS | SLIDING | {"tie_embeddings": True, "num_layers": 3},
    "olmo2_stretched": OUTPUT_NORMS | SLIDING | {"sliding_rope_theta": 10000.0, "rope_scaling": LINEAR},
    "gemma": GEMMA | {"tie_embeddings": True},
    "gemma3": GEMMA3 | SLIDING | {"sliding_rope_theta": 500.0, "rope_scaling": LINEAR, "logit_softcap": 5.0},
    "gemma3_full": GEMMA3 | {"tie_embeddings": True},
    "gemma2": GEMMA | GEMMA2 | SLIDING | {"num_layers": 3},
    "gemma2_full": GEMMA | GEMMA2,
    "gpt2": LAYER_NORM | LEARNED | {"position_offset": 2},
    "mpt": LAYER_NORM | LEARNED | {"bias": False, "tie_embeddings": True},
    "mpt_alibi": LAYER_NORM | {"positions": "alibi", "qkv_bias": False},
    "mpt_none": LAYER_NORM | {"positions": "none"},
    "bloom": LAYER_NORM | {"positions": "alibi", "embedding_norm": True, "num_kv_heads": 6},
    "gptneox": LAYER_NORM | {"rope_fraction": 0.5, "tie_embeddings": True, "rope_scaling": LINEAR},
    "gptneox_one_norm": LAYER_NORM | {"parallel_block": True},
    "gptneox_two_norms": LAYER_NORM | {"parallel_block": True, "parallel_norms": 2, "rope_fraction": 0.25},
    "phi2": LAYER_NORM | {"parallel_block": True, "head_bias": True, "rope_fraction": 0.5},
    "command-r": COHERE | {"logit_scale": 0.25, "num_kv_heads": 1},
    "cohere2": COHERE | SLIDING | {"logit_scale": 0.25, "no_rope_layer_interval": 2},
    "cohere2_all_slide": COHERE | {"sliding_window": 8},
    "prefix_no_rope": {"shape": "prefix", "no_rope_layer_interval": 2},
    "prefix_gpt2": LAYER_NORM | LEARNED | {"shape": "prefix"},
    "prefix_bloom": LAYER_NORM | {"shape": "prefix", "positions": "alibi", "embedding_norm": True},
    "prefix_gptneox": LAYER_NORM | {"shape": "prefix", "parallel_block": True, "rope_fraction": 0.5},
    "prefix_gemma2": GEMMA | GEMMA2 | {"shape": "prefix"},
    "prefix_gemma3": GEMMA3 | {"shape": "prefix"},
    "prefix_command-r": COHERE | {"shape": "prefix"},
    "bert": LAYER_NORM
    | LEARNED
    | {"shape": "encoder", "norm_placement": "post", "embedding_norm": True, "segment_embeddings": 2}
    | {"position_offset": 2, "head_transform": True, "head_bias": True, "tie_embeddings": True},
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
