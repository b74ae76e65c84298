"""Which keys of a config.json are heeded, and what may stand behind each.

Somebody else's file may hold anything: keys that would load code, quantizers or other kernels (`auto_map`,
`attn_implementation` ...) and all that no model here depends on are left out; the rest is of its type and within bounds
before anyone computes with it.
"""

import math
from collections.abc import Callable
from typing import Any

from common.mistakes import Mistake
from model.exchange.json_objects import quoted

Check = Callable[[Any], bool]


def _whole(low: int, high: int) -> tuple[Check, str]:
    return lambda x: type(x) is int and low <= x <= high, f"a whole number from {low} to {high}"


def _number(low: float, high: float) -> tuple[Check, str]:
    return (
        lambda x: type(x) in (int, float) and math.isfinite(x) and low <= x <= high,
        f"a number from {low:g} to {high:g}",
    )


MOST_LAYERS = 10_000
LAYERS, WIDTH, LENGTH = _whole(1, MOST_LAYERS), _whole(1, 2**24), _whole(1, 2**40)
WINDOW: tuple[Check, str] = (lambda x: x is None or LENGTH[0](x), f"null or {LENGTH[1]}")
_CAP = _number(1e-6, 1e6)
CAP: tuple[Check, str] = (lambda x: x is None or _CAP[0](x), f"null or {_CAP[1]}")
"""Null is none, and what is left out is what the class has."""
SMALL, STD = _number(1e-12, 1.0), _number(1e-12, 1.0)
FLAG: tuple[Check, str] = (lambda x: type(x) is bool, "true or false")
NAME: tuple[Check, str] = (lambda x: type(x) is str, "a name in quotes")
NAMES: tuple[Check, str] = (
    lambda x: type(x) is list and 0 < len(x) <= MOST_LAYERS and all(type(each) is str for each in x),
    f"a list of 1 to {MOST_LAYERS} names in quotes",
)
SWITCHES: tuple[Check, str] = (
    lambda x: type(x) is list and 0 < len(x) <= MOST_LAYERS and all(type(each) is int and each in (0, 1) for each in x),
    f"a list of 1 to {MOST_LAYERS} zeros and ones",
)
ID: tuple[Check, str] = (lambda x: type(x) is int and -1 <= x < 2**31, "a token id")
IDS: tuple[Check, str] = (
    lambda x: ID[0](x) or (type(x) is list and len(x) > 0 and all(map(ID[0], x))),
    "a token id or a list of some",
)
OBJECT: tuple[Check, str] = (lambda x: type(x) is dict, "an object")

IDS_OF_TOKENS = {
    "bos_token_id": ID,
    "eos_token_id": IDS,
    "pad_token_id": ID,
    "mask_token_id": ID,
    "decoder_start_token_id": ID,
}
"""Keys of config.json and of generation_config.json alike."""
KEYS = {
    "vocab_size": _whole(2, 2**31 - 1),
    "num_hidden_layers": LAYERS,
    "num_encoder_layers": LAYERS,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "hidden_size": WIDTH,
    "d_model": WIDTH,
    "intermediate_size": WIDTH,
    "d_ff": WIDTH,
    "num_attention_heads": WIDTH,
    "num_heads": WIDTH,
    "num_key_value_heads": WIDTH,
    "head_dim": WIDTH,
    "d_kv": WIDTH,
    "max_position_embeddings": LENGTH,
    "relative_attention_num_buckets": WIDTH,
    "relative_attention_max_distance": LENGTH,
    "rms_norm_eps": SMALL,
    "layer_norm_epsilon": SMALL,
    "initializer_range": STD,
    "rope_theta": _number(1, 1e15),
    "partial_rotary_factor": _number(1e-3, 1),
    "hidden_act": NAME,
    "feed_forward_proj": NAME,
    "dtype": NAME,
    "torch_dtype": NAME,
    "attention_bias": FLAG,
    "attention_out_bias": FLAG,
    "mlp_bias": FLAG,
    "qkv_bias": FLAG,
    "qk_norm": FLAG,
    "gated": FLAG,
    "norm_type": NAME,
    "norm_placement": NAME,
    "norm_bias": FLAG,
    "cls_token_id": ID,
    "sep_token_id": ID,
    "decoder_bias": FLAG,
    "classifier_bias": FLAG,
    "position_type": NAME,
    "embedding_norm": FLAG,
    "parallel_block": FLAG,
    "head_transform": FLAG,
    "head_bias": FLAG,
    "use_sliding_window": FLAG,
    "sliding_window": WINDOW,
    "max_window_layers": _whole(0, MOST_LAYERS),
    "layer_types": NAMES,
    "no_rope_layers": SWITCHES,
    "no_rope_layer_interval": LAYERS,
    "tie_word_embeddings": FLAG,
    "rope_parameters": OBJECT,
    "rope_scaling": OBJECT,
    "global_rope_theta": _number(1, 1e15),
    "local_rope_theta": _number(1, 1e15),
    "rope_local_base_freq": _number(1, 1e15),
    "rotary_emb_base": _number(1, 1e15),
    "rotary_pct": _number(1e-3, 1),
    "rotary_dim": WIDTH,
    "sliding_window_pattern": LAYERS,
    "global_attn_every_n_layers": LAYERS,
    "local_attention": LENGTH,
    "original_max_position_embeddings": LENGTH,
    "n_embd": WIDTH,
    "n_embed": WIDTH,
    "n_layer": LAYERS,
    "n_head": WIDTH,
    "n_inner": WIDTH,
    "n_positions": LENGTH,
    "ffn_dim": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "encoder_layers": LAYERS,
    "encoder_attention_heads": WIDTH,
    "decoder_attention_heads": WIDTH,
    "encoder_ffn_dim": WIDTH,
    "decoder_ffn_dim": WIDTH,
    "type_vocab_size": WIDTH,
    "query_pre_attn_scalar": WIDTH,
    "layer_norm_eps": SMALL,
    "norm_eps": SMALL,
    "init_std": STD,
    "logit_scale": _number(1e-12, 1e6),
    "final_logit_softcapping": CAP,
    "attn_logit_softcapping": CAP,
    "activation_function": NAME,
    "hidden_activation": NAME,
    "classifier_activation": NAME,
    "scale_attn_weights": FLAG,
    "scale_attn_by_inverse_layer_idx": FLAG,
    "add_cross_attention": FLAG,
    "is_decoder": FLAG,
    "do_layer_norm_before": FLAG,
    "enable_bias": FLAG,
    "layer_norm_elementwise_affine": FLAG,
    "_remove_final_layer_norm": FLAG,
    "apply_residual_connection_post_layernorm": FLAG,
    "use_parallel_residual": FLAG,
    "use_qk_norm": FLAG,
    "qk_layernorm": FLAG,
    "use_bidirectional_attention": FLAG,
    "scale_embedding": FLAG,
} | IDS_OF_TOKENS
OF_ALL = frozenset({"vocab_size", "initializer_range", "dtype", "torch_dtype", "tie_word_embeddings", *IDS_OF_TOKENS})
"""Keys that are heeded whatever the class; the others where a family names them."""
OF_KINDS = ("full_attention", "sliding_attention")
"""Kinds of layers, for each of which an object of rotary keys may stand by itself."""
ROPE_KEYS = {
    "rope_type": NAME,
    "type": NAME,
    "rope_theta": KEYS["rope_theta"],
    "factor": _number(1, 1e6),
    "low_freq_factor": _number(1e-6, 1e6),
    "high_freq_factor": _number(1e-6, 1e6),
    "original_max_position_embeddings": LENGTH,
    "partial_rotary_factor": KEYS["partial_rotary_factor"],
}
NESTED_ROPE_KEYS = ROPE_KEYS | dict.fromkeys(OF_KINDS, OBJECT)
NULLABLE = {"num_key_value_heads", "head_dim", "num_decoder_layers", "rope_parameters", "rope_scaling"}
NULLABLE |= {"dtype", "torch_dtype", "partial_rotary_factor", "layer_types", "no_rope_layers", *IDS_OF_TOKENS}
NULLABLE |= {"n_inner", "n_embed", "word_embed_proj_dim", "use_bidirectional_attention", "hidden_activation"}
NULLABLE |= {"global_attn_every_n_layers", "cls_token_id", "sep_token_id", *OF_KINDS}
"""Keys that may be null, which is the same as leaving them out."""
DTYPES = ("float32", "bfloat16", "float16", "float64")


def heeded(where: str, facts: dict[str, Any], keys: dict[str, tuple[Check, str]]) -> dict[str, Any]:
    """The keys of a file or of an object in it that are among `keys`, as they stand there.

    Raises ValueError, which begins with `where`, when one is of another type or out of bounds.
    """
    result = {}
    for key, value in facts.items():
        if key not in keys or (value is None and key in NULLABLE):
            continue
        fits, allowed = keys[key]
        if not fits(value):
            raise Mistake(f"{where}: {key} is {shown_value(value)}; it must be {allowed}")
        if allowed is OBJECT[1]:
            value = heeded(f"{where}: {key}", value, ROPE_KEYS if key in OF_KINDS else NESTED_ROPE_KEYS)
        if key in IDS_OF_TOKENS and (value == -1 or (isinstance(value, list) and -1 in value)):
            continue  # how some say that there is none
        result[key] = value
    for key in ("dtype", "torch_dtype"):
        if result.get(key, DTYPES[0]) not in DTYPES:
            raise Mistake(f"{where}: {key} {quoted(result[key])} is none that is read; allowed are {', '.join(DTYPES)}")
    return _floats(result, keys)


def _floats(values: dict[str, Any], keys: dict[str, tuple[Check, str]]) -> dict[str, Any]:
    """Numbers that need not be whole as floats, which transformers insists on."""
    return {key: float(x) if type(x) is int and "a number" in keys[key][1] else x for key, x in values.items()}


def shown_value(value: Any) -> str:
    """A wrong value with its quotes, so that text can be told from numbers."""
    return f'"{quoted(value)}"' if isinstance(value, str) else quoted(value)
