"""The keys of a GGUF file: what llama.cpp has to know of a model and its tokenizer, and what we want to know again."""

from collections.abc import Mapping
from typing import Any

from model.config import ModelConfig
from model.exchange.gguf.architectures import gguf_architecture
from model.exchange.gguf.file import FILE_TYPES
from model.exchange.gguf.vocabulary import Vocabulary

SHAPE, SOURCE = "shardline.shape", "shardline.source"
"""Keys of our own: the shape that the model was trained in, and what its weights come from."""


def add_model(writer: Any, config: ModelConfig, vocab_size: int, max_positions: int, matrix_type: str) -> None:
    """Adds what says how large a model is and how its blocks compute; writer is the gguf package's."""
    import gguf

    writer.add_type("model")
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[matrix_type]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(vocab_size)
    writer.add_context_length(config.max_positions or max_positions)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    add_eps = writer.add_layer_norm_eps if config.norm == "layernorm" else writer.add_layer_norm_rms_eps
    add_eps(config.norm_eps)
    gguf_architecture(config).add_keys(writer, config)
    if config.shape in ("prefix", "encoder"):
        writer.add_causal_attention(False)
    if config.shape == "encdec":
        writer.add_block_count(config.encoder_layers)
        writer.add_decoder_block_count(config.num_layers)
        writer.add_head_count_kv(config.num_heads)  # as many: key heads are repeated
        writer.add_relative_attn_buckets_count(config.t5_num_buckets)
        return
    writer.add_block_count(config.num_layers)
    writer.add_head_count_kv(config.kv_heads)
    if config.positions == "rope":
        _add_rotation(writer, config)


def _add_rotation(writer: Any, config: ModelConfig) -> None:
    import gguf

    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)


def add_vocabulary(writer: Any, vocabulary: Vocabulary, ids: Mapping[str, int], *, ends_with_eos: bool) -> None:
    """Adds a tokenizer and its special ids: bos, eos, pad and, where there are, unk and mask."""
    writer.add_tokenizer_model(vocabulary.model)
    for role, index in ids.items():
        getattr(writer, f"add_{role}_token_id")(index)
    if vocabulary.model == "none":
        return
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.charsmap:
        writer.add_precompiled_charsmap(vocabulary.charsmap)
    writer.add_add_space_prefix(vocabulary.adds_blank)
    writer.add_remove_extra_whitespaces(vocabulary.drops_blanks)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(ends_with_eos)


def how_to_serve(config: ModelConfig) -> str | None:
    """What one must know of serving such a file so that it computes what it was trained to; None if nothing."""
    if config.shape == "prefix":
        return (
            "a prefix model: llama.cpp reads a prompt both ways only if it goes in at once and nothing of it is kept "
            "from an earlier one, so give llama-server -b and -ub as long as the longest prompt and --no-cache-prompt; "
            "other readers of GGUF take it for a causal model and give worse answers without a word"
        )
    if config.shape == "encdec":
        return (
            "an encoder-decoder: llama.cpp's server and command line never run its encoder; call llama_encode, then "
            "llama_decode of its library"
        )
    if config.shape == "encoder":
        reads = "an encoder: llama-server --embeddings --pooling mean gives embeddings"
        if gguf_architecture(config).has_head:
            return f"{reads}, its library logits of all places"
        return f"{reads}; llama.cpp fills no masks with such blocks, so the output matrix stays behind"
    if gguf_architecture(config).is_young:
        return (
            "of llama.cpp's architecture granite_swa, for windows or layers without positions: old versions refuse it"
        )
    return None
