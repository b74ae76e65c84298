"""More of what peers.py gives: models whose blocks have their norms, heads or embeddings elsewhere than Llama's."""

import torch
import transformers

from model.config import ModelConfig
from tests.model.peers import D_FF, HEAD_DIM, HEADS, KINDS, LAYERS, OURS, THEIRS, WIDTH, Peer, randomised, stacked


def _llama_stack(state: dict[str, torch.Tensor], theirs: str, mine: str, norms: dict[str, str]) -> dict:
    """Projections of attention and feed-forward by Llama's names, norms by those that are given (ours: theirs)."""
    ours = {f"{mine}norm.weight": state[f"{theirs}norm.weight"]}
    for i in range(LAYERS):
        layer = f"{theirs}layers.{i}."
        parts = {
            "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attention.output": ("self_attn.o_proj",),
            "feed_forward.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
            "feed_forward.down": ("mlp.down_proj",),
        } | {name: (source,) for name, source in norms.items()}
        for name, sources in parts.items():
            ours[f"{mine}blocks.{i}.{name}.weight"] = stacked(state, layer, *(f"{source}.weight" for source in sources))
    return ours


OUTPUT_NORMS = {
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention_output_norm": "post_attention_layernorm",
    "feed_forward_output_norm": "post_feedforward_layernorm",
}
SANDWICH_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_output_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_output_norm": "post_feedforward_layernorm",
}


def _arguments(**keys) -> dict:
    rope = {"rope_type": "default", "rope_theta": 1e4}
    same = {"intermediate_size": D_FF, "num_key_value_heads": 2, "head_dim": HEAD_DIM, "rope_parameters": rope}
    same |= {"rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attn_implementation": "eager"}
    return {**THEIRS, **same, **keys}


def _embeddings(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of Llama's names; logits are halved, or rounding would show in the larger ones."""
    state["lm_head.weight"].mul_(0.5)
    return {"embedding.weight": state["model.embed_tokens.weight"], "head.weight": state["lm_head.weight"]}


def exaone4() -> Peer:
    """Norms of what attention and feed-forward give, as OLMo 2, and of single heads, as Qwen 3."""
    model = transformers.Exaone4ForCausalLM(
        transformers.Exaone4Config(**_arguments(sliding_window=None, layer_types=["full_attention"] * LAYERS))
    )
    state = randomised(model)
    ours = _embeddings(state) | _llama_stack(state, "model.", "", OUTPUT_NORMS)
    return model, ModelConfig(**OURS, num_kv_heads=2, norm_placement="output", qk_norm=True), ours


def gemma2() -> Peer:
    """Norms on both sides of attention and feed-forward, stored less 1; scores and logits capped."""
    caps = {"final_logit_softcapping": 1.5, "attn_logit_softcapping": 0.7, "query_pre_attn_scalar": 5}
    arguments = _arguments(**caps, layer_types=["full_attention"] * LAYERS)
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**arguments))
    state = randomised(model)
    ours = _embeddings(state) | _llama_stack(state, "model.", "", SANDWICH_NORMS)
    keys = {
        "norm": "rmsnorm_1p",
        "norm_placement": "sandwich",
        "activation": "geglu",
        "embedding_scale": WIDTH**0.5,
        "logit_softcap": 1.5,
        "attention_softcap": 0.7,
        "attention_scale": 5**-0.5,
    }
    return model, ModelConfig(**OURS, **keys, num_kv_heads=2), ours


def gemma3() -> Peer:
    """The same with norms of queries and keys, windows, and another rotary base in layers that slide."""
    rope = {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e5}}
    rope["sliding_attention"] = {"rope_type": "default", "rope_theta": 5e3}
    arguments = _arguments(query_pre_attn_scalar=HEAD_DIM, sliding_window=12, layer_types=KINDS, rope_parameters=rope)
    model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**arguments))
    state = randomised(model)
    norms = SANDWICH_NORMS | {f"attention.{each}_norm": f"self_attn.{each}_norm" for each in "qk"}
    ours = _embeddings(state) | _llama_stack(state, "model.", "", norms)
    keys = {"norm": "rmsnorm_1p", "norm_placement": "sandwich", "activation": "geglu", "embedding_scale": WIDTH**0.5}
    keys |= {"qk_norm": True, "sliding_window": 12, "layer_types": KINDS, "rope_theta": 3e5, "sliding_rope_theta": 5e3}
    return model, ModelConfig(**OURS, **keys, rope_scaling={"kind": "linear", "factor": 4.0}, num_kv_heads=2), ours


def t5gemma() -> Peer:
    """Gemma 2's blocks as encoder and decoder, one of whose embeddings is set to the other."""
    caps = {"final_logit_softcapping": 1.5, "attn_logit_softcapping": 0.7, "query_pre_attn_scalar": 5}
    sizes = _arguments(**caps, layer_types=["full_attention"] * LAYERS) | {"pad_token_id": 0}
    side = transformers.T5GemmaModuleConfig(**sizes)
    keys = {"vocab_size": sizes["vocab_size"], "attn_implementation": "eager", "tie_word_embeddings": False}
    config = transformers.T5GemmaConfig(encoder=side.to_dict(), decoder=side.to_dict(), **keys)
    model = transformers.T5GemmaForConditionalGeneration(config)
    randomised(model)
    model.model.encoder.embed_tokens.weight.data = model.model.decoder.embed_tokens.weight.data
    state = model.state_dict()
    for name, weight in state.items():
        if "norm" in name:  # gains as small as others': means over many tokens are near 0, and their rounding grows
            weight.sub_(1.7 if ".post_" in name else 1.0)
    ours = {"embedding.weight": state["model.decoder.embed_tokens.weight"]}
    ours["head.weight"] = state["lm_head.out_proj.weight"].mul_(0.5)
    norms = SANDWICH_NORMS | {"attention_norm": "pre_self_attn_layernorm"}
    norms |= {"attention_output_norm": "post_self_attn_layernorm"}
    crossing = norms | {"cross_attention_norm": "pre_cross_attn_layernorm", "cross_attention.q": "cross_attn.q_proj"}
    crossing |= {"cross_attention_output_norm": "post_cross_attn_layernorm"}
    crossing |= {"cross_attention.output": "cross_attn.o_proj"}
    for mine, theirs, parts in (("", "model.decoder.", crossing), ("encoder.", "model.encoder.", norms)):
        ours |= _llama_stack(state, theirs, mine, parts)
    for i in range(LAYERS):
        names = (f"cross_attn.{each}_proj.weight" for each in "kv")
        ours[f"blocks.{i}.cross_attention.kv.weight"] = stacked(state, f"model.decoder.layers.{i}.", *names)
    keys = {"norm": "rmsnorm_1p", "norm_placement": "sandwich", "activation": "geglu", "embedding_scale": WIDTH**0.5}
    keys |= {"attention_softcap": 0.7, "attention_scale": 5**-0.5}
    return model, ModelConfig(**OURS, **keys, shape="encdec", num_kv_heads=2, logit_softcap=1.5), ours


def olmo2() -> Peer:
    """Norms of what attention and feed-forward give, and of the queries and the keys of all heads together."""
    arguments = _arguments()
    model = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**arguments))
    state = randomised(model)
    ours = _embeddings(state) | _llama_stack(state, "model.", "", OUTPUT_NORMS)
    return model, ModelConfig(**OURS, num_kv_heads=2, norm_placement="output", qk_norm="all_heads"), ours


def gpt_neox() -> Peer:
    """A parallel block with a norm for attention and another for the feed-forward; q, k, v take turns head by head."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    arguments = {**THEIRS, "intermediate_size": D_FF, "rope_parameters": rope, "attn_implementation": "eager"}
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**arguments, hidden_act="gelu"))
    state = randomised(model)
    ours = {"embedding.weight": state["gpt_neox.embed_in.weight"], "head.weight": state["lm_head.weight"]}
    parts = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
    parts |= {"attention.output": "attention.dense"}
    parts |= {"feed_forward.up": "mlp.dense_h_to_4h", "feed_forward.down": "mlp.dense_4h_to_h"}
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"] = state[f"gpt_neox.final_layer_norm.{kind}"]
        for i in range(LAYERS):
            theirs = f"gpt_neox.layers.{i}."
            for name, source in parts.items():
                ours[f"blocks.{i}.{name}.{kind}"] = state[f"{theirs}{source}.{kind}"]
            fused = state[f"{theirs}attention.query_key_value.{kind}"].unflatten(0, (HEADS, 3, HEAD_DIM))
            ours[f"blocks.{i}.attention.qkv.{kind}"] = fused.transpose(0, 1).flatten(0, 2)
    keys = {"norm": "layernorm", "bias": True, "activation": "gelu", "parallel_block": True, "parallel_norms": 2}
    return model, ModelConfig(**OURS, **keys, rope_fraction=0.25), ours


def bert() -> Peer:
    """Norms after the sums, a table of segments, and a map, a norm and a bias around the output matrix."""
    arguments = {**THEIRS, "intermediate_size": D_FF, "max_position_embeddings": 96, "layer_norm_eps": 1e-5}
    model = transformers.BertForMaskedLM(transformers.BertConfig(**arguments, attn_implementation="eager"))
    state = randomised(model)
    tables = {"embedding": "word", "position_embedding": "position", "segment_embedding": "token_type"}
    ours = {f"{mine}.weight": state[f"bert.embeddings.{theirs}_embeddings.weight"] for mine, theirs in tables.items()}
    ours["head.weight"] = state["cls.predictions.decoder.weight"]
    ours["head.bias"] = state["cls.predictions.bias"]
    parts = {
        "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output": ("attention.output.dense",),
        "attention_norm": ("attention.output.LayerNorm",),
        "feed_forward.up": ("intermediate.dense",),
        "feed_forward.down": ("output.dense",),
        "feed_forward_norm": ("output.LayerNorm",),
    }
    for kind in ("weight", "bias"):
        ours[f"embedding_norm.{kind}"] = state[f"bert.embeddings.LayerNorm.{kind}"]
        ours[f"head_transform.dense.{kind}"] = state[f"cls.predictions.transform.dense.{kind}"]
        ours[f"head_transform.norm.{kind}"] = state[f"cls.predictions.transform.LayerNorm.{kind}"]
        for i in range(LAYERS):
            for name, sources in parts.items():
                names = [f"{source}.{kind}" for source in sources]
                ours[f"blocks.{i}.{name}.{kind}"] = stacked(state, f"bert.encoder.layer.{i}.", *names)
    keys = {"shape": "encoder", "norm": "layernorm", "norm_placement": "post", "bias": True, "embedding_norm": True}
    keys |= {"positions": "learned", "max_positions": 96, "segment_embeddings": 2, "activation": "gelu"}
    return model, ModelConfig(**OURS, **keys, head_transform=True, head_bias=True, tie_embeddings=True), ours
