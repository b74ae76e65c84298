"""Small random models of Hugging Face's with our config and our weights for the same network.

Each function gives (their model, our config, our weights by name). None of it uses the project's own tables of names.
"""

from collections.abc import Callable

import torch
import transformers
from torch import nn
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

from model.config import ModelConfig

VOCAB = 61
WIDTH, HEADS, LAYERS, D_FF = 48, 6, 2, 56
HEAD_DIM = WIDTH // HEADS
OURS = {"num_layers": LAYERS, "d_model": WIDTH, "num_heads": HEADS, "d_ff": D_FF}
THEIRS = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
Peer = tuple[nn.Module, ModelConfig, dict[str, torch.Tensor]]


def randomised(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gives a model in evaluation new weights, norms and biases among them, and returns them."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.eval().parameters():
        if weight.dim() > 1:
            weight.data.normal_(0.0, 0.15, generator=generator)
        else:
            weight.data.uniform_(0.5, 1.5, generator=generator).mul_(1 if weight.mean() > 0.5 else 0.2)
    return model.state_dict()


def stacked(state: dict[str, torch.Tensor], prefix: str, *names: str) -> torch.Tensor:
    return torch.cat([state[f"{prefix}{name}"] for name in names])


def llama_like(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Llama, Qwen and EuroBERT differ in what they leave out."""
    ours = {"embedding.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"]}
    ours["head.weight"] = state["lm_head.weight"]
    for i in range(LAYERS):
        theirs, mine = f"model.layers.{i}.", f"blocks.{i}."
        ours[mine + "attention_norm.weight"] = state[theirs + "input_layernorm.weight"]
        ours[mine + "feed_forward_norm.weight"] = state[theirs + "post_attention_layernorm.weight"]
        for kind in ("weight", "bias"):
            parts = {
                "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                "attention.output": ("self_attn.o_proj",),
                "attention.q_norm": ("self_attn.q_norm",),
                "attention.k_norm": ("self_attn.k_norm",),
                "feed_forward.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
                "feed_forward.down": ("mlp.down_proj",),
            }
            for name, sources in parts.items():
                if f"{theirs}{sources[0]}.{kind}" in state:
                    ours[f"{mine}{name}.{kind}"] = stacked(state, theirs, *(f"{s}.{kind}" for s in sources))
    return ours


def llama(ours: dict | None = None, theirs: dict | None = None, kind: str = "Llama") -> Peer:
    arguments = {**THEIRS, "intermediate_size": D_FF, "num_key_value_heads": 2, "head_dim": HEAD_DIM}
    arguments |= {"rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attn_implementation": "eager"}
    config = getattr(transformers, f"{kind}Config")(**arguments | (theirs or {}))
    suffix = "MaskedLM" if kind == "EuroBert" else "CausalLM"
    model = getattr(transformers, f"{kind}For{suffix}")(config)
    return model, ModelConfig(**{**OURS, "num_kv_heads": 2, **(ours or {})}), llama_like(randomised(model))


WINDOW = {"use_sliding_window": True, "sliding_window": 12}
KINDS = ["sliding_attention", "full_attention"]


def modernbert() -> Peer:
    """Its first layer has no norm before attention."""
    rope = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in zip(KINDS, (1e4, 2e5), strict=True)}
    arguments = {
        **THEIRS,
        "intermediate_size": D_FF,
        "local_attention": 24,
        "layer_types": KINDS[::-1],
        "norm_eps": 1e-12,
    }
    specials = {"pad_token_id": 0, "rope_parameters": rope, "attn_implementation": "eager"}
    model = transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**arguments | specials))
    state = randomised(model)
    ours = {"embedding.weight": state["model.embeddings.tok_embeddings.weight"], "head.bias": state["decoder.bias"]}
    norms = {"norm": "model.final_norm", "embedding_norm": "model.embeddings.norm"}
    ours |= {f"{mine}.weight": state[f"{theirs}.weight"] for mine, theirs in norms.items()}
    ours |= {f"head_transform.{name}.weight": state[f"head.{name}.weight"] for name in ("dense", "norm")}
    ours["head.weight"] = state["decoder.weight"]
    parts = {"attention.qkv": "attn.Wqkv", "attention.output": "attn.Wo", "attention_norm": "attn_norm"}
    parts |= {"feed_forward_norm": "mlp_norm", "feed_forward.gate_up": "mlp.Wi", "feed_forward.down": "mlp.Wo"}
    for i in range(LAYERS):
        for name, theirs in parts.items():
            if (i, name) != (0, "attention_norm"):
                ours[f"blocks.{i}.{name}.weight"] = state[f"model.layers.{i}.{theirs}.weight"]
    keys = {"shape": "encoder", "norm": "layernorm", "embedding_norm": True, "activation": "geglu_exact"}
    keys |= {"first_attention_norm": False}
    keys |= {"head_transform": True, "head_bias": True, "tie_embeddings": True, "norm_eps": 1e-12}
    keys |= {"rope_theta": 2e5, "sliding_rope_theta": 1e4}
    return model, ModelConfig(**OURS, **keys, sliding_window=24, layer_types=KINDS[::-1]), ours


def qwen3_next_attention(bias: bool) -> tuple[Callable[[torch.Tensor], torch.Tensor], dict[str, torch.Tensor]]:
    """Its attention of one document [L, M] -> [L, M], and our weights for it.

    Queries and gates take turns there, head by head, and norms are stored less 1.
    """
    arguments = {**THEIRS, "num_key_value_heads": 2, "head_dim": HEAD_DIM, "attention_bias": bias, "rms_norm_eps": 1e-6}
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    arguments |= {"layer_types": ["full_attention"] * LAYERS, "rope_parameters": rope}
    config = transformers.Qwen3NextConfig(**arguments, attn_implementation="eager")
    rotary, attention = qwen3_next.Qwen3NextRotaryEmbedding(config), qwen3_next.Qwen3NextAttention(config, 0)
    state = randomised(attention)

    def attend(x: torch.Tensor) -> torch.Tensor:
        tables = rotary(x[None], torch.arange(len(x))[None])
        mask = torch.full((len(x), len(x)), torch.finfo(x.dtype).min).triu(1)
        return attention(x[None], tables, mask[None, None])[0][0]

    ours = {f"{name}.weight": state[f"{name}.weight"] + 1 for name in ("q_norm", "k_norm")}
    for kind in ("weight", "bias") if bias else ("weight",):
        q, gate = (part.flatten(0, 1) for part in state[f"q_proj.{kind}"].unflatten(0, (HEADS, 2, HEAD_DIM)).unbind(1))
        ours[f"qkv.{kind}"] = torch.cat((q, state[f"k_proj.{kind}"], state[f"v_proj.{kind}"], gate))
        ours[f"output.{kind}"] = state[f"o_proj.{kind}"]
    return attend, ours


def llama3() -> Peer:
    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {"rope_type": "llama3", "rope_theta": 5e3, "original_max_position_embeddings": 64, **numbers}
    ours = {"kind": "llama3", "original_max_positions": 64, **numbers}
    return llama({"rope_theta": 5e3, "rope_scaling": ours}, {"rope_parameters": rope})


def linear_rope() -> Peer:
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
    return llama({"rope_scaling": {"kind": "linear", "factor": 3.0}}, {"rope_parameters": rope})


def phi() -> Peer:
    """A parallel block with biases everywhere, the head's too, and half of each head rotated."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    arguments = {**THEIRS, "intermediate_size": D_FF, "num_key_value_heads": 3, "rope_parameters": rope}
    model = transformers.PhiForCausalLM(transformers.PhiConfig(**arguments, hidden_act="gelu"))
    state = randomised(model)
    ours = {"embedding.weight": state["model.embed_tokens.weight"], "head.weight": state["lm_head.weight"]}
    ours["head.bias"] = state["lm_head.bias"]
    parts = {"attention_norm": ("input_layernorm",), "attention.output": ("self_attn.dense",)}
    parts |= {"attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}
    parts |= {"feed_forward.up": ("mlp.fc1",), "feed_forward.down": ("mlp.fc2",)}
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"] = state[f"model.final_layernorm.{kind}"]
        for i in range(LAYERS):
            for name, sources in parts.items():
                names = [f"{source}.{kind}" for source in sources]
                ours[f"blocks.{i}.{name}.{kind}"] = stacked(state, f"model.layers.{i}.", *names)
    keys = {"norm": "layernorm", "bias": True, "activation": "gelu", "parallel_block": True, "num_kv_heads": 3}
    return model, ModelConfig(**OURS, **keys, rope_fraction=0.5, head_bias=True), ours


def gpt2() -> Peer:
    config = transformers.GPT2Config(**THEIRS, n_inner=D_FF, n_positions=96)
    model = transformers.GPT2LMHeadModel(config)
    state = randomised(model)
    ours = {"embedding.weight": state["transformer.wte.weight"], "head.weight": state["lm_head.weight"]}
    ours["position_embedding.weight"] = state["transformer.wpe.weight"]
    parts = {"attention_norm": "ln_1", "feed_forward_norm": "ln_2"}
    matrices = {"attention.qkv": "attn.c_attn", "attention.output": "attn.c_proj"}
    matrices |= {"feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj"}
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"] = state[f"transformer.ln_f.{kind}"]
        for i in range(LAYERS):
            for name, source in (parts | matrices).items():
                value = state[f"transformer.h.{i}.{source}.{kind}"]
                ours[f"blocks.{i}.{name}.{kind}"] = value.t() if name in matrices and kind == "weight" else value
    keys = {"norm": "layernorm", "bias": True, "activation": "gelu_tanh", "positions": "learned", "max_positions": 96}
    return model, ModelConfig(**OURS, **keys, tie_embeddings=True), ours


def halves(weight: torch.Tensor, rotary_dim: int) -> torch.Tensor:
    """Rows of a q or k matrix whose neighbours rotate together, in an order where halves do."""
    heads = weight.unflatten(0, (HEADS, HEAD_DIM))
    turning, rest = heads[:, :rotary_dim], heads[:, rotary_dim:]
    return torch.cat((turning[:, 0::2], turning[:, 1::2], rest), 1).flatten(0, 1)


def gptj() -> Peer:
    """Its output matrix of attention and its queries, keys and values have no bias; its head has one."""
    rotary_dim = 4
    model = transformers.GPTJForCausalLM(
        transformers.GPTJConfig(
            **THEIRS, n_inner=D_FF, n_positions=128, rotary_dim=rotary_dim, tie_word_embeddings=False
        )
    )
    state = randomised(model)
    ours = {"embedding.weight": state["transformer.wte.weight"], "head.weight": state["lm_head.weight"]}
    ours["head.bias"] = state["lm_head.bias"]
    for i in range(LAYERS):
        theirs, mine = f"transformer.h.{i}.", f"blocks.{i}."
        q, k = (halves(state[f"{theirs}attn.{name}_proj.weight"], rotary_dim) for name in "qk")
        ours[mine + "attention.qkv.weight"] = torch.cat((q, k, state[theirs + "attn.v_proj.weight"]))
        ours[mine + "attention.output.weight"] = state[theirs + "attn.out_proj.weight"]
    parts = {"attention_norm": "ln_1", "feed_forward.up": "mlp.fc_in", "feed_forward.down": "mlp.fc_out"}
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"] = state[f"transformer.ln_f.{kind}"]
        for i in range(LAYERS):
            for name, source in parts.items():
                ours[f"blocks.{i}.{name}.{kind}"] = state[f"transformer.h.{i}.{source}.{kind}"]
    keys = {"norm": "layernorm", "bias": True, "qkv_bias": False, "activation": "gelu_tanh", "parallel_block": True}
    keys |= {"attention_output_bias": False}
    return model, ModelConfig(**OURS, **keys, rope_fraction=rotary_dim / HEAD_DIM, head_bias=True), ours


def cohere() -> Peer:
    """A parallel block as PaLM's: SwiGLU, one LayerNorm without bias, nothing else with one, tied."""
    theirs = {"logit_scale": 0.5, "layer_norm_eps": 1e-5, "tie_word_embeddings": True, "intermediate_size": D_FF}
    theirs |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "pad_token_id": 0}
    model = transformers.CohereForCausalLM(transformers.CohereConfig(**THEIRS | theirs))
    state = randomised(model)
    for i in range(LAYERS):
        # A second norm is looked up by the mapping of Llama's names, and not there.
        state[f"model.layers.{i}.post_attention_layernorm.weight"] = torch.empty(0)
    ours = llama_like(state)
    for i in range(LAYERS):
        del ours[f"blocks.{i}.feed_forward_norm.weight"]
        q, k, v = ours[f"blocks.{i}.attention.qkv.weight"].chunk(3)
        ours[f"blocks.{i}.attention.qkv.weight"] = torch.cat((halves(q, HEAD_DIM), halves(k, HEAD_DIM), v))
    keys = {"norm": "layernorm", "parallel_block": True, "tie_embeddings": True, "logit_scale": 0.5}
    return model, ModelConfig(**OURS, **keys), ours


def bloom() -> Peer:
    """Six heads, no power of two: its slopes are those of four heads and two more."""
    arguments = {**THEIRS, "n_head": HEADS, "n_layer": LAYERS}
    model = transformers.BloomForCausalLM(transformers.BloomConfig(**arguments))
    state = randomised(model)
    ours = {"embedding.weight": state["transformer.word_embeddings.weight"], "head.weight": state["lm_head.weight"]}
    parts = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
    parts |= {"attention.output": "self_attention.dense"}
    parts |= {"feed_forward.up": "mlp.dense_h_to_4h", "feed_forward.down": "mlp.dense_4h_to_h"}
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"] = state[f"transformer.ln_f.{kind}"]
        ours[f"embedding_norm.{kind}"] = state[f"transformer.word_embeddings_layernorm.{kind}"]
        for i in range(LAYERS):
            theirs = f"transformer.h.{i}."
            for name, source in parts.items():
                ours[f"blocks.{i}.{name}.{kind}"] = state[f"{theirs}{source}.{kind}"]
            fused = state[f"{theirs}self_attention.query_key_value.{kind}"].unflatten(0, (HEADS, 3, HEAD_DIM))
            ours[f"blocks.{i}.attention.qkv.{kind}"] = fused.transpose(0, 1).flatten(0, 2)
    keys = {"norm": "layernorm", "bias": True, "activation": "gelu_tanh", "positions": "alibi", "embedding_norm": True}
    return model, ModelConfig(**OURS | {"d_ff": 4 * WIDTH}, **keys, tie_embeddings=True), ours


def opt() -> Peer:
    """Its table of positions has two rows that are never read."""
    arguments = {**THEIRS, "pad_token_id": 0, "ffn_dim": D_FF, "max_position_embeddings": 96}
    model = transformers.OPTForCausalLM(transformers.OPTConfig(**arguments, word_embed_proj_dim=WIDTH, dropout=0.0))
    state = randomised(model)
    theirs = "model.decoder."
    ours = {"embedding.weight": state[theirs + "embed_tokens.weight"], "head.weight": state["lm_head.weight"]}
    ours["position_embedding.weight"] = state[theirs + "embed_positions.weight"]
    parts = {"attention_norm": ("self_attn_layer_norm",), "feed_forward_norm": ("final_layer_norm",)}
    parts |= {"attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}
    parts |= {"attention.output": ("self_attn.out_proj",), "feed_forward.up": ("fc1",), "feed_forward.down": ("fc2",)}
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"] = state[f"{theirs}final_layer_norm.{kind}"]
        for i in range(LAYERS):
            for name, sources in parts.items():
                names = [f"{source}.{kind}" for source in sources]
                ours[f"blocks.{i}.{name}.{kind}"] = stacked(state, f"{theirs}layers.{i}.", *names)
    keys = {"norm": "layernorm", "bias": True, "activation": "relu", "positions": "learned", "max_positions": 96}
    return model, ModelConfig(**OURS, **keys, position_offset=2, tie_embeddings=True), ours


def t5(activation: str = "gated-gelu", num_encoder_layers: int = LAYERS + 1) -> Peer:
    """T5 v1.1. Its scores are not scaled by head_dim^-0.5, so that goes into our queries."""
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=WIDTH,
        d_kv=HEAD_DIM,
        d_ff=D_FF,
        num_layers=num_encoder_layers,
        num_decoder_layers=LAYERS,
        num_heads=HEADS,
        feed_forward_proj=activation,
        layer_norm_epsilon=1e-5,
        tie_word_embeddings=False,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    model = transformers.T5ForConditionalGeneration(config)
    model.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)  # it ties the head whatever the config says
    state = randomised(model)
    for name, weight in state.items():
        if name.endswith("Attention.q.weight"):
            weight.mul_(HEAD_DIM**-0.5)  # as T5 draws them: scores as spread as others', or rounding would show
    ours = {"embedding.weight": state["shared.weight"], "head.weight": state["lm_head.weight"]}
    for mine, theirs, layers in (("", "decoder.", LAYERS), ("encoder.", "encoder.", num_encoder_layers)):
        bias = state[f"{theirs}block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        ours[mine + "attention_bias.weight"] = bias
        ours[mine + "norm.weight"] = state[theirs + "final_layer_norm.weight"]
        for i in range(layers):
            block = _t5_block(state, f"{theirs}block.{i}.layer.", cross=not mine)
            ours |= {f"{mine}blocks.{i}.{name}.weight": value for name, value in block.items()}
    gated = {"gated-gelu": "geglu", "gated-silu": "swiglu", "relu": "relu"}[activation]
    keys = {"shape": "encdec", "positions": "t5_bias", "activation": gated, "num_encoder_layers": num_encoder_layers}
    return model, ModelConfig(**OURS, **keys), ours


def _t5_block(state: dict[str, torch.Tensor], theirs: str, cross: bool) -> dict[str, torch.Tensor]:
    def attention(name: str) -> list[torch.Tensor]:
        q, k, v, o = (state[f"{theirs}{name}.{part}.weight"] for part in "qkvo")
        return [q * HEAD_DIM**0.5, k, v, o]

    q, k, v, output = attention("0.SelfAttention")
    block = {"attention_norm": state[theirs + "0.layer_norm.weight"], "attention.qkv": torch.cat((q, k, v))}
    block["attention.output"] = output
    last = "1"
    if cross:
        last = "2"
        q, k, v, output = attention("1.EncDecAttention")
        block |= {"cross_attention_norm": state[theirs + "1.layer_norm.weight"], "cross_attention.q": q}
        block |= {"cross_attention.kv": torch.cat((k, v)), "cross_attention.output": output}
    feed_forward = f"{theirs}{last}.DenseReluDense."
    block["feed_forward_norm"] = state[f"{theirs}{last}.layer_norm.weight"]
    block["feed_forward.down"] = state[feed_forward + "wo.weight"]
    if feed_forward + "wi.weight" in state:
        block["feed_forward.up"] = state[feed_forward + "wi.weight"]
    else:
        block["feed_forward.gate_up"] = stacked(state, feed_forward, "wi_0.weight", "wi_1.weight")
    return block


def bart(name: str = "Bart", **keys) -> Peer:
    """Norms after the embedding of each stack, learned positions in each, and biases everywhere.

    mBART is pre-norm; BART is post-norm, with no norm at a stack's end.
    """
    sizes = {"encoder_layers": LAYERS + 1, "decoder_layers": LAYERS, "encoder_ffn_dim": D_FF, "decoder_ffn_dim": D_FF}
    heads = {"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "max_position_embeddings": 160}
    specials = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1, "forced_eos_token_id": None}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCAB, d_model=WIDTH, **sizes, **heads, **specials, **keys
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    state, is_pre = randomised(model), name == "MBart"
    ours = {"embedding.weight": state["model.shared.weight"], "head.weight": state["lm_head.weight"]}
    for mine, prefix, layers in (("", "model.decoder.", LAYERS), ("encoder.", "model.encoder.", LAYERS + 1)):
        ours[mine + "position_embedding.weight"] = state[prefix + "embed_positions.weight"]
        for kind in ("weight", "bias"):
            if is_pre:
                ours[f"{mine}norm.{kind}"] = state[f"{prefix}layer_norm.{kind}"]
            ours[f"{mine}embedding_norm.{kind}"] = state[f"{prefix}layernorm_embedding.{kind}"]
            for i in range(layers):
                block = _bart_block(state, f"{prefix}layers.{i}.", kind, cross=not mine)
                ours |= {f"{mine}blocks.{i}.{name}.{kind}": value for name, value in block.items()}
    mine_keys = {"shape": "encdec", "norm": "layernorm", "bias": True, "activation": "gelu", "embedding_norm": True}
    mine_keys |= {
        "positions": "learned",
        "max_positions": 160,
        "num_encoder_layers": LAYERS + 1,
        "tie_embeddings": True,
    }
    mine_keys |= {"norm_placement": "pre" if is_pre else "post", "position_offset": 2}
    mine_keys |= {"embedding_scale": config.d_model**0.5 if config.scale_embedding else 1.0}
    return model, ModelConfig(**OURS, **mine_keys), ours


def _bart_block(state: dict[str, torch.Tensor], theirs: str, kind: str, cross: bool) -> dict[str, torch.Tensor]:
    parts = {
        "attention_norm": ("self_attn_layer_norm",),
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.output": ("self_attn.out_proj",),
        "feed_forward_norm": ("final_layer_norm",),
        "feed_forward.up": ("fc1",),
        "feed_forward.down": ("fc2",),
    }
    if cross:
        parts["cross_attention_norm"] = ("encoder_attn_layer_norm",)
        parts["cross_attention.q"] = ("encoder_attn.q_proj",)
        parts["cross_attention.kv"] = ("encoder_attn.k_proj", "encoder_attn.v_proj")
        parts["cross_attention.output"] = ("encoder_attn.out_proj",)
    return {name: stacked(state, theirs, *(f"{s}.{kind}" for s in sources)) for name, sources in parts.items()}
