"""BART, which vLLM has no class for, of its layers: post-norm, learned positions, two rows of which are never read."""

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from model.exchange.vllm.encdec import QKV, CrossAttentionBlock, EncDec, Heads, SelfAttention, Stacks
from model.exchange.vllm.encoder_text import EncoderTextDummies, EncoderTextInfo, EncoderTextProcessor
from model.exchange.vllm.weights import Weights, with_one_embedding

OFFSET = 2
"""Rows of the table of positions that are never read."""
SIDES = ("encoder", "decoder")
SHARED, OTHERS = "model.shared.weight", [f"model.{side}.embed_tokens.weight" for side in SIDES]
"""Names of the embedding; where it is not tied to the head, a folder has it under all of them."""


class Layer(nn.Module):
    """A block of either side."""

    def __init__(self, vllm_config: VllmConfig, prefix: str, is_decoder: bool) -> None:
        super().__init__()
        config, quant, self.is_decoder = vllm_config.model_config.hf_config, vllm_config.quant_config, is_decoder
        side = "decoder" if is_decoder else "encoder"
        width, inner = config.d_model, getattr(config, f"{side}_ffn_dim")
        num = getattr(config, f"{side}_attention_heads")
        heads = Heads(width, num, num, width // num, bias=True, bias_out=True)
        self.self_attn = SelfAttention(vllm_config, f"{prefix}.self_attn", heads, is_decoder)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        if is_decoder:
            self.encoder_attn = CrossAttentionBlock(vllm_config, f"{prefix}.encoder_attn", heads)
            self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = ColumnParallelLinear(width, inner, quant_config=quant, prefix=f"{prefix}.fc1")
        self.fc2 = RowParallelLinear(inner, width, quant_config=quant, prefix=f"{prefix}.fc2")
        self.final_layer_norm = nn.LayerNorm(width)
        self.act_fn = ACT2FN[config.activation_function]

    def forward(
        self, x: torch.Tensor, positions: torch.Tensor, memory: torch.Tensor | None = None, **ends: torch.Tensor
    ) -> torch.Tensor:
        """[T, M] -> [T, M]."""
        x = self.self_attn_layer_norm(x + self.self_attn(x, positions, **ends))
        if self.is_decoder:
            x = self.encoder_attn_layer_norm(x + self.encoder_attn(x, memory))
        return self.final_layer_norm(x + self.fc2(self.act_fn(self.fc1(x)[0]))[0])


class Stack(nn.Module):
    """The positions and layers of one side."""

    def __init__(self, vllm_config: VllmConfig, prefix: str, is_decoder: bool) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.embed_positions = nn.Embedding(config.max_position_embeddings + OFFSET, config.d_model)
        self.layernorm_embedding = nn.LayerNorm(config.d_model)
        self.layers = nn.ModuleList(
            Layer(vllm_config, f"{prefix}.layers.{index}", is_decoder)
            for index in range(config.decoder_layers if is_decoder else config.encoder_layers)
        )

    def forward(self, x: torch.Tensor, positions: torch.Tensor, **keys: Any) -> torch.Tensor:
        """[T, M] -> [T, M]."""
        x = self.layernorm_embedding(x + self.embed_positions(positions + OFFSET))
        for layer in self.layers:
            x = layer(x, positions, **keys)
        return x


@MULTIMODAL_REGISTRY.register_processor(EncoderTextProcessor, info=EncoderTextInfo, dummy_inputs=EncoderTextDummies)
class BartForConditionalGeneration(EncDec):
    """BART with one embedding for both sides."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        encoder, decoder = (Stack(vllm_config, f"model.{side}", side == "decoder") for side in SIDES)
        super().__init__(vllm_config, Stacks(encoder, decoder, config.vocab_size, config.d_model))
        self.scale = config.d_model**0.5 if config.scale_embedding else 1.0
        self.final_logits_bias = nn.Parameter(torch.zeros(1, config.vocab_size), requires_grad=False)

    def embed_input_ids(self, input_ids: torch.Tensor, *args: Any, **keys: Any) -> torch.Tensor:
        """See `EncDec`."""
        return super().embed_input_ids(input_ids) * self.scale

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """See `EncDec`."""
        logits = super().compute_logits(hidden_states)
        return None if logits is None else logits + self.final_logits_bias

    def load_weights(self, weights: Weights) -> set[str]:
        """See vLLM. ValueError when the sides have embeddings of their own."""
        mapper = WeightsMapper(orig_to_new_substr={".out_proj.": ".o_proj."}, orig_to_new_stacked=QKV)
        return self.load(with_one_embedding(weights, SHARED, OTHERS), mapper)
