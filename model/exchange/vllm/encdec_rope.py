"""Our encoder-decoder of Llama's blocks (hf/encdec_rope.py), of vLLM's layers."""

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from model.exchange.vllm.encdec import QKV, CrossAttentionBlock, EncDec, Heads, SelfAttention, Stacks
from model.exchange.vllm.encoder_text import EncoderTextDummies, EncoderTextInfo, EncoderTextProcessor
from model.exchange.vllm.weights import Weights


class RotaryAttention(SelfAttention):
    """Attention whose queries and keys are rotated, and normed before where the config says so."""

    def __init__(self, vllm_config: VllmConfig, prefix: str, heads: Heads, is_decoder: bool) -> None:
        super().__init__(vllm_config, prefix, heads, is_decoder)
        config, self.size = vllm_config.model_config.hf_config, heads.size
        self.q_norm, self.k_norm = (
            RMSNorm(heads.size, config.rms_norm_eps) if config.qk_norm else nn.Identity() for _ in range(2)
        )
        self.rotary_emb = get_rope(heads.size, config.max_position_embeddings, rope_parameters=config.rope_parameters)

    def placed(self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `SelfAttention`."""
        q, k = (
            norm(x.unflatten(-1, (-1, self.size)).contiguous()).flatten(-2)
            for x, norm in ((q, self.q_norm), (k, self.k_norm))
        )
        return self.rotary_emb(positions, q, k)


class FeedForward(nn.Module):
    """Feed-forward layer, gated or not."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config, quant = vllm_config.model_config.hf_config, vllm_config.quant_config
        width, inner, bias, self.gated = config.hidden_size, config.intermediate_size, config.mlp_bias, config.gated
        if self.gated:
            self.gate_up_proj = MergedColumnParallelLinear(
                width, [inner] * 2, bias, quant_config=quant, prefix=f"{prefix}.gate_up_proj"
            )
        else:
            self.up_proj = ColumnParallelLinear(width, inner, bias, quant_config=quant, prefix=f"{prefix}.up_proj")
        self.down_proj = RowParallelLinear(inner, width, bias, quant_config=quant, prefix=f"{prefix}.down_proj")
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, M] -> [T, M]."""
        if self.gated:
            gate, up = self.gate_up_proj(x)[0].chunk(2, dim=-1)
            return self.down_proj(self.act_fn(gate) * up)[0]
        return self.down_proj(self.act_fn(self.up_proj(x)[0]))[0]


class Layer(nn.Module):
    """A block of either side."""

    def __init__(self, vllm_config: VllmConfig, prefix: str, is_decoder: bool) -> None:
        super().__init__()
        config, self.is_decoder = vllm_config.model_config.hf_config, is_decoder
        width, eps = config.hidden_size, config.rms_norm_eps
        heads = Heads(
            width,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.qkv_bias,
            config.attention_bias,
        )
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = RotaryAttention(vllm_config, f"{prefix}.self_attn", heads, is_decoder)
        if is_decoder:
            self.cross_attn_layernorm = RMSNorm(width, eps)
            self.cross_attn = CrossAttentionBlock(vllm_config, f"{prefix}.cross_attn", heads)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = FeedForward(vllm_config, f"{prefix}.mlp")

    def forward(
        self, x: torch.Tensor, positions: torch.Tensor, memory: torch.Tensor | None = None, **ends: torch.Tensor
    ) -> torch.Tensor:
        """[T, M] -> [T, M]."""
        x = x + self.self_attn(self.input_layernorm(x), positions, **ends)
        if self.is_decoder:
            x = x + self.cross_attn(self.cross_attn_layernorm(x), memory)
        return x + self.mlp(self.post_attention_layernorm(x))


class Stack(nn.Module):
    """The layers of one side and their norm."""

    def __init__(self, vllm_config: VllmConfig, prefix: str, num_layers: int, is_decoder: bool) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.layers = nn.ModuleList(
            Layer(vllm_config, f"{prefix}.layers.{index}", is_decoder) for index in range(num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, positions: torch.Tensor, **keys: Any) -> torch.Tensor:
        """[T, M] -> [T, M]."""
        for layer in self.layers:
            x = layer(x, positions, **keys)
        return self.norm(x)


@MULTIMODAL_REGISTRY.register_processor(EncoderTextProcessor, info=EncoderTextInfo, dummy_inputs=EncoderTextDummies)
class EncDecRopeForConditionalGeneration(EncDec):
    """The class that config.json of an exported rotary encoder-decoder names."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        encoder = Stack(vllm_config, "model.encoder", config.num_encoder_layers, is_decoder=False)
        decoder = Stack(vllm_config, "model.decoder", config.num_hidden_layers, is_decoder=True)
        super().__init__(vllm_config, Stacks(encoder, decoder, config.vocab_size, config.hidden_size))
        self.stacked = QKV | (
            {".gate_proj": (".gate_up_proj", 0), ".up_proj": (".gate_up_proj", 1)} if config.gated else {}
        )

    def load_weights(self, weights: Weights) -> set[str]:
        """See vLLM."""
        return self.load(weights, WeightsMapper(orig_to_new_stacked=self.stacked))
