"""What encoder-decoders of ours share in vLLM: attention of its layers, and a model around two stacks.

Tokens of all texts of a step lie in one row: [T, M] for the decoder's, [S, M] for those that the encoder reads.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention, CrossAttention, MMEncoderAttention
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper

from model.exchange.vllm.encoder_text import keep_texts_in_order
from model.exchange.vllm.weights import Weights

QKV = {f".self_attn.{each}_proj": (".self_attn.qkv_proj", each) for each in "qkv"}
"""Weights that are one here."""


class Heads(NamedTuple):
    """Sizes of attention."""

    width: int
    num: int
    num_kv: int
    size: int
    bias: bool
    bias_out: bool


class SelfAttention(nn.Module):
    """Attention to the same text: to all of it in an encoder, to what came before in a decoder."""

    def __init__(self, vllm_config: VllmConfig, prefix: str, heads: Heads, is_decoder: bool) -> None:
        super().__init__()
        quant = vllm_config.quant_config
        self.qkv_proj = QKVParallelLinear(
            heads.width,
            heads.size,
            heads.num,
            heads.num_kv,
            heads.bias,
            quant_config=quant,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            heads.num * heads.size, heads.width, heads.bias_out, quant_config=quant, prefix=f"{prefix}.o_proj"
        )
        num, num_kv = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        local = num, heads.size, heads.size**-0.5, num_kv
        if is_decoder:
            cache = vllm_config.cache_config
            self.attn = Attention(*local, cache_config=cache, quant_config=quant, prefix=f"{prefix}.attn")
        else:
            self.attn = MMEncoderAttention(*local, prefix=f"{prefix}.attn")
        self.splits = [each * heads.size for each in (num, num_kv, num_kv)]

    def forward(self, x: torch.Tensor, positions: torch.Tensor, **ends: torch.Tensor) -> torch.Tensor:
        """States [T, M] -> [T, M]; an encoder is given the ends of its texts."""
        q, k, v = self.qkv_proj(x)[0].split(self.splits, dim=-1)
        q, k = self.placed(q, k, positions)
        out = self.attn(q[None], k[None], v[None], **ends)[0] if ends else self.attn(q, k, v)
        return self.o_proj(out)[0]

    def placed(self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is done to queries and keys first: nothing."""
        return q, k


class CrossAttentionBlock(nn.Module):
    """Attention to the encoder's states; vLLM keeps their keys from the step that they come in."""

    def __init__(self, vllm_config: VllmConfig, prefix: str, heads: Heads) -> None:
        super().__init__()
        quant, ranks = vllm_config.quant_config, get_tensor_model_parallel_world_size()
        if heads.num_kv % ranks:
            raise ValueError(f"--tensor-parallel-size: {ranks} does not divide {heads.num_kv} key/value heads")
        self.q_proj, self.k_proj, self.v_proj = (
            ColumnParallelLinear(
                heads.width, num * heads.size, heads.bias, quant_config=quant, prefix=f"{prefix}.{each}_proj"
            )
            for each, num in (("q", heads.num), ("k", heads.num_kv), ("v", heads.num_kv))
        )
        self.o_proj = RowParallelLinear(
            heads.num * heads.size, heads.width, heads.bias_out, quant_config=quant, prefix=f"{prefix}.o_proj"
        )
        self.attn = CrossAttention(
            heads.num // ranks,
            heads.size,
            heads.size**-0.5,
            num_kv_heads=heads.num_kv // ranks,
            cache_config=vllm_config.cache_config,
            quant_config=quant,
            prefix=f"{prefix}.attn",
        )

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None) -> torch.Tensor:
        """States [T, M] and those of texts that are new in this step [S, M] -> [T, M]."""
        k, v = (None, None) if memory is None else (self.k_proj(memory)[0], self.v_proj(memory)[0])
        return self.o_proj(self.attn(self.q_proj(x)[0], k, v))[0]


class Stacks(nn.Module):
    """An encoder and a decoder around one embedding."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, vocab_size: int, width: int) -> None:
        super().__init__()
        self.shared = VocabParallelEmbedding(vocab_size, width)
        self.encoder, self.decoder = encoder, decoder


class EncDec(nn.Module, SupportsMultiModal):
    """What vLLM asks of a model; a subclass gives it its stacks, which map states and positions to states."""

    def __init__(self, vllm_config: VllmConfig, stacks: Stacks) -> None:
        super().__init__()
        keep_texts_in_order()
        self.model = stacks
        config = vllm_config.model_config.hf_config
        self.is_tied = config.tie_word_embeddings
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size)
        if self.is_tied:
            self.lm_head = self.lm_head.tie_weights(self.model.shared)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def get_language_model(self) -> nn.Module:
        """See vLLM."""
        return self.model.decoder

    def embed_multimodal(self, encoder_input_ids: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Texts [S] each -> the encoder's states [S, M] each."""
        texts = list(encoder_input_ids)
        lengths, device = [len(text) for text in texts], texts[0].device
        states = self.model.encoder(
            self.embed_input_ids(torch.cat(texts)),
            torch.cat([torch.arange(length, device=device) for length in lengths]),
            cu_seqlens=torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32),
            max_seqlen=torch.tensor(max(lengths)),
        )
        return states.split(lengths)

    def embed_input_ids(self, input_ids: torch.Tensor, *args: Any, **keys: Any) -> torch.Tensor:
        """Ids [T] of either side -> [T, M]."""
        return self.model.shared(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: None = None,
        inputs_embeds: None = None,
        encoder_outputs: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The decoder's ids [T] and the states of texts that are new in this step -> [T, M]."""
        memory = torch.cat(list(encoder_outputs)) if encoder_outputs else None
        return self.model.decoder(self.embed_input_ids(input_ids), positions, memory=memory)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """[T, M] -> [T, V]."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load(self, weights: Weights, mapper: WeightsMapper) -> set[str]:
        """Takes the weights under the names of the exported folder, which `mapper` turns into ours."""
        skipped = WeightsMapper(orig_to_new_prefix={"lm_head.": None} if self.is_tied else {})
        return AutoWeightsLoader(self).load_weights(weights, mapper=mapper | skipped)
