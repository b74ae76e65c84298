"""An encoder-decoder of Llama's blocks: rotary positions within each side, none across.

Each stack is pre-norm with RMSNorm, grouped-query attention and a gated or plain feed-forward layer; the embedding
serves both sides. Generates with a cache, greedily, by sampling or by beams.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)


class EncDecRopeConfig(PreTrainedConfig):
    """Keys as of Llama; num_hidden_layers counts the decoder's."""

    model_type = "encdec_rope"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 32000
    hidden_size: int = 512
    intermediate_size: int = 1024
    num_hidden_layers: int = 6
    num_encoder_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int = 64
    hidden_act: str = "silu"
    gated: bool = True
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_parameters: dict | None = None
    attention_bias: bool = False
    qkv_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    is_encoder_decoder: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    decoder_start_token_id: int | None = None


class EncDecRopeAttention(nn.Module):
    """Attention to the same tokens, or without positions to those of the encoder."""

    def __init__(self, config, layer_idx, is_cross=False):
        super().__init__()
        self.config, self.layer_idx, self.is_cross, self.is_causal = config, layer_idx, is_cross, False
        self.head_dim, self.scaling = config.head_dim, config.head_dim**-0.5
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        query, key = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=config.attention_bias)
        normed = config.qk_norm and not is_cross
        self.q_norm = LlamaRMSNorm(self.head_dim, config.rms_norm_eps) if normed else nn.Identity()
        self.k_norm = LlamaRMSNorm(self.head_dim, config.rms_norm_eps) if normed else nn.Identity()

    def forward(self, states, mask, memory=None, rope=None, cache=None):
        """States [B, T, M] -> [B, T, M]; memory [B, S, M] for cross-attention."""
        q = self._heads(self.q_proj(states), self.q_norm)
        done = cache is not None and self.is_cross and cache.is_updated.get(self.layer_idx)
        if done:
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            k, v = layer.keys, layer.values
        else:
            source = memory if self.is_cross else states
            k, v = self._heads(self.k_proj(source), self.k_norm), self._heads(self.v_proj(source), nn.Identity())
        if rope is not None:
            q, k = apply_rotary_pos_emb(q, k, *rope)
        if cache is not None and not done:
            part = cache.cross_attention_cache if self.is_cross else cache.self_attention_cache
            k, v = part.update(k, v, self.layer_idx)
            if self.is_cross:
                cache.is_updated[self.layer_idx] = True
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, _ = attend(self, q, k, v, mask, dropout=0.0, scaling=self.scaling, is_causal=False)
        return self.o_proj(out.reshape(*states.shape[:2], -1))

    def _heads(self, x, norm):
        return norm(x.unflatten(-1, (-1, self.head_dim))).transpose(1, 2)


class EncDecRopeMLP(nn.Module):
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
        x = self.act_fn(self.gate_proj(x)) * self.up_proj(x) if self.gated else self.act_fn(self.up_proj(x))
        return self.down_proj(x)


class EncDecRopeLayer(nn.Module):
    """A block of either side."""

    def __init__(self, config, layer_idx, has_cross):
        super().__init__()
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = EncDecRopeAttention(config, layer_idx)
        self.has_cross = has_cross
        if has_cross:
            self.cross_attn_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
            self.cross_attn = EncDecRopeAttention(config, layer_idx, is_cross=True)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = EncDecRopeMLP(config)

    def forward(self, x, mask, rope, memory=None, memory_mask=None, cache=None):
        """[B, T, M] -> [B, T, M]."""
        x = x + self.self_attn(self.input_layernorm(x), mask, rope=rope, cache=cache)
        if self.has_cross:
            x = x + self.cross_attn(self.cross_attn_layernorm(x), memory_mask, memory=memory, cache=cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class EncDecRopePreTrainedModel(PreTrainedModel):
    """What all classes here share."""

    config_class = EncDecRopeConfig
    base_model_prefix = "model"
    _no_split_modules = ["EncDecRopeLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _supports_flash_attn = False


class EncDecRopeStack(EncDecRopePreTrainedModel):
    """The layers of one side, from embeddings to normed states."""

    main_input_name = "inputs_embeds"

    def __init__(self, config, num_layers, is_decoder):
        super().__init__(config)
        self.is_decoder = is_decoder
        self.layers = nn.ModuleList(EncDecRopeLayer(config, i, is_decoder) for i in range(num_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.post_init()

    def forward(
        self,
        inputs_embeds,
        attention_mask=None,
        position_ids=None,
        memory=None,
        memory_mask=None,
        past_key_values=None,
        **kwargs,
    ):
        """[B, T, M] -> states [B, T, M]; a decoder reads memory [B, S, M] masked by memory_mask [B, S]."""
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + past
        facts = {"config": self.config, "inputs_embeds": inputs_embeds}
        cross_mask = None
        if self.is_decoder:
            cache = None if past_key_values is None else past_key_values.self_attention_cache
            # Never left to the kernel: with a cache its own causal mask would begin at the wrong corner.
            mask = create_causal_mask(
                **facts, attention_mask=attention_mask, past_key_values=cache, allow_is_causal_skip=False
            )
            cross_mask = create_bidirectional_mask(**facts, attention_mask=memory_mask, encoder_hidden_states=memory)
        else:
            mask = create_bidirectional_mask(**facts, attention_mask=attention_mask)
        rope = self.rotary_emb(inputs_embeds, position_ids=position_ids)
        x = inputs_embeds
        for layer in self.layers:
            x = layer(x, mask, rope, memory, cross_mask, past_key_values)
        return BaseModelOutput(last_hidden_state=self.norm(x))


class EncDecRopeEncoder(EncDecRopeStack):
    """The encoder's side; reads ids too, as `generate` wants it to."""

    main_input_name = "input_ids"

    def __init__(self, config, shared):
        super().__init__(config, config.num_encoder_layers, is_decoder=False)
        self._embed = (shared,)  # in a tuple, so that its weight is not another weight of the encoder

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **kwargs):
        """Ids [B, S] or embeddings [B, S, M] -> states [B, S, M]."""
        embeds = self._embed[0](input_ids) if inputs_embeds is None else inputs_embeds
        return super().forward(embeds, attention_mask)


class EncDecRopeModel(EncDecRopePreTrainedModel):
    """Both stacks around one embedding."""

    def __init__(self, config):
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder = EncDecRopeEncoder(config, self.shared)
        self.decoder = EncDecRopeStack(config, config.num_hidden_layers, is_decoder=True)
        self.post_init()

    def get_input_embeddings(self):
        """The embedding of both sides."""
        return self.shared

    def set_input_embeddings(self, value):
        """Another embedding for both sides."""
        self.shared = value
        self.encoder._embed = (value,)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        decoder_input_ids=None,
        decoder_attention_mask=None,
        decoder_position_ids=None,
        encoder_outputs=None,
        past_key_values=None,
        inputs_embeds=None,
        decoder_inputs_embeds=None,
        use_cache=None,
        **kwargs,
    ):
        """Ids [B, S] and decoder's ids [B, T] -> states [B, T, M]."""
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds)
        memory = encoder_outputs[0]
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if past_key_values is None and use_cache and not self.training:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        if decoder_inputs_embeds is None:
            decoder_inputs_embeds = self.shared(decoder_input_ids)
        states = self.decoder(
            decoder_inputs_embeds,
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            memory=memory,
            memory_mask=attention_mask,
            past_key_values=past_key_values,
        )[0]
        return Seq2SeqModelOutput(
            last_hidden_state=states, past_key_values=past_key_values, encoder_last_hidden_state=memory
        )


class EncDecRopeForConditionalGeneration(EncDecRopePreTrainedModel, GenerationMixin):
    """The model with its head."""

    _tied_weights_keys = {"lm_head.weight": "model.shared.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = EncDecRopeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_encoder(self, *args, **kwargs):
        """The encoder's stack."""
        return self.model.encoder

    def forward(self, input_ids=None, attention_mask=None, decoder_input_ids=None, labels=None, **kwargs):
        """Ids [B, S] and decoder's ids [B, T], or labels [B, T] that they follow from -> logits [B, T, V]."""
        if labels is not None and decoder_input_ids is None and kwargs.get("decoder_inputs_embeds") is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        kwargs.pop("return_dict", None)
        outputs = self.model(input_ids, attention_mask, decoder_input_ids, **kwargs)
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
        )

    def prepare_decoder_input_ids_from_labels(self, labels):
        """Labels [B, T] one place later, behind the start token; where there is no label, padding."""
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = self.config.decoder_start_token_id
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id or 0)
