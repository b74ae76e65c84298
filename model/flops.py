"""How large a model is and how much arithmetic a training step of it takes: the numerator of MFU.

The count is the usual one (PaLM, arXiv 2204.02311, appendix B) made exact for packed documents: only
query-key pairs that attention allows are counted, and recomputed activations are not.
"""

from typing import NamedTuple

from model.config import ModelConfig


class Work(NamedTuple):
    """What went through a model, summed over packs."""

    num_tokens: int
    """Tokens of the stack that has the head."""
    num_pairs: int
    """Its query-key pairs: the sum of `AttentionPattern.num_pairs`."""
    num_encoder_tokens: int = 0
    """Tokens of the encoder beside it."""
    num_encoder_pairs: int = 0
    """Query-key pairs of that encoder."""
    num_cross_pairs: int = 0
    """Query-key pairs between the two."""
    num_window_pairs: int | None = None
    """Of `num_pairs` those in layers that slide; empty means that there are none such."""
    num_encoder_window_pairs: int = 0
    """The same of `num_encoder_pairs`."""
    num_further_pairs: int | None = None
    """Of all further depths together, each with what its layer sees; empty means that there are none such."""
    num_further_targets: int | None = None
    """Tokens that need the output projection for them; empty means all, at each depth."""
    num_targets: int | None = None
    """Tokens that need the output projection; empty means all that `num_tokens` counts."""


def num_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Trainable weights; a tied embedding counts once."""
    embeddings = vocab_size * config.d_model * (1 if config.tie_embeddings else 2)
    layers = config.num_layers + config.multi_token_depths
    stacks = layers * _block_extras(config, cross=config.shape == "encdec") + _stack_extras(config)
    stacks += (2 + config.has_final_norm) * config.multi_token_depths * _norm(config)
    if config.shape == "encdec":
        stacks += config.encoder_layers * _block_extras(config, cross=False) + _stack_extras(config)
    head = vocab_size * config.head_bias + config.head_transform * (config.d_model * config.bias + _norm(config))
    return embeddings + num_matmul_parameters(config, 0) + stacks + head


def num_matmul_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Weights of matrices that multiply tokens: those of blocks, and the output projection; no embeddings."""
    per_token, per_encoder_token = _matrices(config)
    return per_token + per_encoder_token + vocab_size * config.d_model


def train_flops(config: ModelConfig, vocab_size: int, work: Work) -> int:
    """Floating-point operations of a forward and backward pass.

    6 x matmul weights x the tokens they multiply: a multiplication and an addition, forward once, backward twice;
    12 x layers x H x D x pairs: the same for query-key scores and for their weighted values, each layer with its pairs.
    """
    assert config.sliding_window is None or work.num_window_pairs is not None, "pairs within the window are not told"
    assert not config.multi_token_depths or work.num_further_pairs is not None, "pairs of further depths are not told"
    per_token, per_encoder_token = _matrices(config)
    depths, transform = config.multi_token_depths, config.head_transform * config.d_model**2
    matmuls = per_token * work.num_tokens + per_encoder_token * work.num_encoder_tokens
    matmuls += depths * transform * work.num_tokens
    targets = work.num_tokens if work.num_targets is None else work.num_targets
    targets += depths * work.num_tokens if work.num_further_targets is None else work.num_further_targets
    matmuls += vocab_size * config.d_model * targets
    pairs = (config.num_layers + depths) * work.num_cross_pairs + (work.num_further_pairs or 0)
    for layers, full, sliding in (
        (config.num_layers, work.num_pairs, work.num_window_pairs or 0),
        (config.encoder_layers, work.num_encoder_pairs, work.num_encoder_window_pairs),
    ):
        slide = config.num_sliding(layers)
        pairs += (layers - slide) * full + slide * sliding
    return 6 * matmuls + 12 * config.num_heads * config.head_size * pairs


def _matrices(config: ModelConfig) -> tuple[int, int]:
    """Weights of matrices that multiply each token of the stack with the head, and each of the encoder beside it."""
    width = config.d_model
    query, keys = width * config.num_heads * config.head_size, 2 * width * config.kv_heads * config.head_size
    attention = (3 if config.attention_gate else 2) * query
    block = attention + keys + (3 if config.is_gated else 2) * width * config.d_ff
    layers = config.num_layers + config.multi_token_depths
    ends = (config.multi_token_depths * 2 + config.head_transform) * width**2
    if config.shape != "encdec":
        return layers * block + ends, 0
    return layers * (block + attention) + ends, config.encoder_layers * block + layers * keys


def _norm(config: ModelConfig) -> int:
    return config.d_model * (2 if config.norm == "layernorm" and config.bias else 1)


def _qk_norms(config: ModelConfig) -> int:
    heads = {False: 0, True: 2, "all_heads": config.num_heads + config.kv_heads}
    return heads[config.qk_norm] * config.head_size


def _block_extras(config: ModelConfig, cross: bool) -> int:
    """Weights of a block that are in no matrix: norms and biases, of scores too."""
    query, keys = config.num_heads * config.head_size, 2 * config.kv_heads * config.head_size
    norms = config.num_norms(3 if cross else 2) * _norm(config) + _qk_norms(config)
    queries = query * (2 if config.attention_gate else 1)
    attention = (queries + keys) * config.has_qkv_bias + config.d_model * config.has_attention_output_bias
    tables = config.t5_num_buckets * config.num_heads * config.t5_bias_per_layer
    feed_forward = ((2 if config.is_gated else 1) * config.d_ff + config.d_model) * config.bias
    return norms + tables + feed_forward + (2 if cross else 1) * attention


def _stack_extras(config: ModelConfig) -> int:
    """Weights of a stack outside its blocks, less what its first block has not."""
    norms = (config.has_final_norm + config.embedding_norm - (not config.first_attention_norm)) * _norm(config)
    has_table = config.positions == "t5_bias" and not config.t5_bias_per_layer
    biases = config.t5_num_buckets * config.num_heads * has_table
    positions = 0 if config.max_positions is None else config.max_positions + config.position_offset
    return norms + biases + (positions + (config.segment_embeddings or 0)) * config.d_model
