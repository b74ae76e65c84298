"""A decoder with a bidirectional prefix, of blocks that Llama's are not.

Norms are RMSNorm or LayerNorm, before each half of a block or after the sum; feed-forward layers gated or plain,
attention and feed-forward one after the other or side by side; positions are rotary (of a part of each head,
stretched), learned, ALiBi's or none; the head may have a map and a norm before it, a bias and a scale. The tokens of
the prompt see each other, those after it see all before them. `generate` takes the whole prompt as the prefix, or as
much of it as `prefix_lengths` says; a plain call must say, or it would give another model's numbers without a warning.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward


class PrefixDecoderConfig(PreTrainedConfig):
    """Keys as of Llama where it has them."""

    model_type = "prefix_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 32000
    hidden_size: int = 512
    intermediate_size: int = 1024
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int = 64
    hidden_act: str = "silu"
    gated: bool = True
    norm_type: str = "rmsnorm"
    norm_placement: str = "pre"
    layer_norm_epsilon: float = 1e-5
    embedding_norm: bool = False
    parallel_block: bool = False
    position_type: str = "rope"
    max_position_embeddings: int = 2048
    type_vocab_size: int = 0
    rope_parameters: dict | None = None
    attention_bias: bool = False
    qkv_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    qk_norm: bool = False
    head_transform: bool = False
    head_bias: bool = False
    logit_scale: float = 1.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


def make_norm(config):
    """A norm [..., M] -> [..., M] of the kind that the config says."""
    if config.norm_type == "rmsnorm":
        return LlamaRMSNorm(config.hidden_size, config.layer_norm_epsilon)
    return nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon, bias=config.norm_bias)


def alibi_slopes(num_heads):
    """The rates of ALiBi's paper (arXiv 2108.12409), fp32 [H]."""
    power = 2 ** int(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return torch.tensor(slopes + [2 ** (-4 * (2 * i + 1) / power) for i in range(num_heads - power)])


class PrefixDecoderAttention(nn.Module):
    """Attention with grouped heads."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, False
        self.head_dim, self.scaling = config.head_dim, config.head_dim**-0.5
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        query, key = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=config.attention_bias)
        self.q_norm = LlamaRMSNorm(self.head_dim, config.layer_norm_epsilon) if config.qk_norm else nn.Identity()
        self.k_norm = LlamaRMSNorm(self.head_dim, config.layer_norm_epsilon) if config.qk_norm else nn.Identity()

    def forward(self, x, mask, rope, cache):
        """[B, T, M] -> [B, T, M]."""
        q, k = self._heads(self.q_norm, self.q_proj(x)), self._heads(self.k_norm, self.k_proj(x))
        v = self._heads(nn.Identity(), self.v_proj(x))
        if rope is not None:
            q, k = apply_rotary_pos_emb(q, k, *rope)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, _ = attend(self, q, k, v, mask, dropout=0.0, scaling=self.scaling, is_causal=False)
        return self.o_proj(out.reshape(*x.shape[:2], -1))

    def _heads(self, norm, x):
        return norm(x.unflatten(-1, (-1, self.head_dim))).transpose(1, 2)


class PrefixDecoderMLP(nn.Module):
    """Feed-forward layer."""

    def __init__(self, config):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        if config.gated:
            self.gate_proj = nn.Linear(width, inner, bias=config.mlp_bias)
        self.up_proj = nn.Linear(width, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, width, bias=config.mlp_bias)
        self.act_fn, self.gated = ACT2FN[config.hidden_act], config.gated

    def forward(self, x):
        """[B, T, M] -> [B, T, M]."""
        return self.down_proj(
            self.act_fn(self.gate_proj(x)) * self.up_proj(x) if self.gated else self.act_fn(self.up_proj(x))
        )


class PrefixDecoderLayer(nn.Module):
    """A block; one whose halves stand side by side has one norm for both, which is before them."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = PrefixDecoderAttention(config, layer_idx)
        self.post_attention_layernorm = None if config.parallel_block else make_norm(config)
        self.mlp = PrefixDecoderMLP(config)
        self.norm_placement = config.norm_placement

    def forward(self, x, mask, rope, cache):
        """[B, T, M] -> [B, T, M]."""
        if self.norm_placement == "post":
            x = self.input_layernorm(x + self.self_attn(x, mask, rope, cache))
            return self.post_attention_layernorm(x + self.mlp(x))
        normed = self.input_layernorm(x)
        x = x + self.self_attn(normed, mask, rope, cache)
        return x + self.mlp(normed if self.post_attention_layernorm is None else self.post_attention_layernorm(x))


class PrefixDecoderPreTrainedModel(PreTrainedModel):
    """What all classes here share."""

    config_class = PrefixDecoderConfig
    base_model_prefix = "model"
    _no_split_modules = ["PrefixDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _supports_flash_attn = False  # its kernels take no mask


class PrefixDecoderModel(PrefixDecoderPreTrainedModel):
    """The stack; `prefix_lengths` int [B] counts the tokens of each row's prefix, padding left out."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        is_learned = config.position_type == "learned"
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size) if is_learned else None
        has_segments = config.type_vocab_size > 0
        self.embed_segments = nn.Embedding(config.type_vocab_size, config.hidden_size) if has_segments else None
        self.embed_norm = make_norm(config) if config.embedding_norm else None
        self.layers = nn.ModuleList(PrefixDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = make_norm(config) if config.norm_placement == "pre" else nn.Identity()
        self.rotary_emb = GPTNeoXRotaryEmbedding(config) if config.position_type == "rope" else None
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        prefix_lengths=None,
        **kwargs,
    ):
        """Ids [B, T] -> states [B, T, M]; attention_mask [B, T and what is cached] marks padding on either side."""
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if past_key_values is None and use_cache and not self.training:
            past_key_values = DynamicCache()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        seen = x.new_ones((len(x), past + x.shape[1]), dtype=torch.long) if attention_mask is None else attention_mask
        if seen.ndim != 2:
            raise ValueError("attention_mask: it must be [rows, tokens]; generate with a dynamic cache")
        positions = (seen.long().cumsum(1) - 1).clamp(min=0)[:, past : past + x.shape[1]]
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        if self.embed_segments is not None:
            x = x + self.embed_segments.weight[0]
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        mask = self._mask(x, seen, past, past_key_values, prefix_lengths)
        rope = None if self.rotary_emb is None else self.rotary_emb(x, position_ids=positions)
        for layer in self.layers:
            x = layer(x, mask, rope, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), past_key_values=past_key_values)

    def _mask(self, x, seen, past, cache, prefix_lengths):
        """Who of x [B, T, M] sees whom, with ALiBi's penalties where the config has them: [B, 1 or H, T, S]."""
        if prefix_lengths is None and not past:
            raise ValueError(
                "prefix_lengths: a call with nothing cached must say how many tokens of each row are prefix; give a "
                "tensor [rows], 0 for none, or use generate(), which takes the whole prompt"
            )
        blocks = None if past else self._blocks(seen, prefix_lengths)
        if past and prefix_lengths is not None and (seen[:, :past].sum(1) < prefix_lengths).any():
            raise ValueError("prefix_lengths: the prefix must come in one piece, but a part of it is cached")
        # Never left to the kernel: with a cache its own causal mask would begin at the wrong corner.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=seen,
            past_key_values=cache,
            block_sequence_ids=blocks,
            allow_is_causal_skip=False,
        )
        if self.config.position_type != "alibi":
            return mask
        keys = torch.arange(mask.shape[-1], device=x.device)
        distances = (keys[None, :] - (past + torch.arange(x.shape[1], device=x.device))[:, None]).abs()
        bias = (-alibi_slopes(self.config.num_attention_heads).to(x.device)[:, None, None] * distances).to(x.dtype)
        if mask.dtype == torch.bool:
            return torch.where(mask, bias, torch.finfo(x.dtype).min)
        return mask + bias

    def _blocks(self, seen, prefix_lengths):
        """0 where a token is of its row's prefix, -1 elsewhere."""
        lengths = torch.as_tensor(prefix_lengths, device=seen.device).expand(len(seen))
        if (lengths > seen.sum(1)).any():
            raise ValueError("prefix_lengths: a row has fewer tokens than its prefix; give the prefix in one piece")
        return torch.where((seen.cumsum(1) <= lengths[:, None]) & (seen > 0), 0, -1)


class PrefixDecoderHeadTransform(nn.Module):
    """What states go through before the head."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn, self.norm = ACT2FN[config.hidden_act], make_norm(config)

    def forward(self, x):
        """[B, T, M] -> [B, T, M]."""
        return self.norm(self.act_fn(self.dense(x)))


class PrefixDecoderForCausalLM(PrefixDecoderPreTrainedModel, GenerationMixin):
    """The stack with its head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = PrefixDecoderModel(config)
        self.head_transform = PrefixDecoderHeadTransform(config) if config.head_transform else nn.Identity()
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, prefix_lengths=None, labels=None, **kwargs):
        """Ids [B, T] -> logits [B, T, V]; see PrefixDecoderModel for `prefix_lengths`. Labels [B, T] as of Llama."""
        kwargs.pop("return_dict", None)
        outputs = self.model(input_ids, attention_mask, prefix_lengths=prefix_lengths, **kwargs)
        logits = self.lm_head(self.head_transform(outputs.last_hidden_state)) * self.config.logit_scale
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)

    @torch.no_grad()
    def generate(self, inputs=None, *args, prefix_lengths=None, **kwargs):
        """As everyone's; the prefix is the whole prompt unless `prefix_lengths` [B] says otherwise."""
        given = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        prompt = next((x for x in given if x is not None), None)
        if prompt is not None and kwargs.get("past_key_values") is None:
            if kwargs.get("attention_mask") is None:
                kwargs["attention_mask"] = self._mask_of(prompt)
            if prefix_lengths is None:
                prefix_lengths = kwargs["attention_mask"].sum(1)
            kwargs["prefix_lengths"] = torch.as_tensor(prefix_lengths, device=prompt.device).expand(prompt.shape[0])
        return super().generate(inputs, *args, **kwargs)

    def _mask_of(self, prompt):
        """All tokens but leading padding."""
        pad, eos = self.generation_config.pad_token_id, self.generation_config.eos_token_id
        if pad is None or prompt.ndim != 2 or pad in (eos if isinstance(eos, list) else [eos]):
            return torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
        return ((prompt != pad).cumsum(1) > 0).long()
