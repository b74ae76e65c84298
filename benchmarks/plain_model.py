"""The peer of benchmarks/train_step.py: the decoder and the loop one writes by hand in plain PyTorch.

It is written as well as such a thing usually is: rows of equal length [B, L], torch's own RMSNorm, fused
attention with its causal flag, rotary tables computed once, logits of the whole batch, torch's AdamW with the usual
weight-decay groups. Weights have Hugging Face's names and shapes.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from model.config import ModelConfig
from training.config import OptimizerConfig


class PlainAttention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_size
        width, key_width = config.num_heads * self.head_dim, config.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.d_model, width, bias=False)
        self.k_proj = nn.Linear(config.d_model, key_width, bias=False)
        self.v_proj = nn.Linear(config.d_model, key_width, bias=False)
        self.o_proj = nn.Linear(width, config.d_model, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """[B, L, M] -> [B, L, M]; cos and sin [L, D]."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q = rotate(self.q_proj(x).view(heads).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(heads).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return self.o_proj(out.transpose(1, 2).flatten(2))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions of [B, H, L, D]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class PlainMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, L, M] -> [B, L, M]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class PlainBlock(nn.Module):
    """One decoder layer."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.self_attn = PlainAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = PlainMLP(config)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """[B, L, M] -> [B, L, M]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class PlainDecoder(nn.Module):
    """The same function as model.network.transformer.Transformer on rows that are whole documents."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: ModelConfig, vocab_size: int, length: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, config.d_model)
        self.layers = nn.ModuleList(PlainBlock(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        frequencies = config.rope_theta ** -(torch.arange(0, config.head_size, 2).float() / config.head_size)
        angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [B, L] -> logits [B, L, V]."""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return self.lm_head(self.norm(x))

    def load_hf(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Takes over weights by Hugging Face's names."""
        own = {name.removeprefix("model."): weight for name, weight in weights.items()}
        if self.lm_head.weight is self.embed_tokens.weight:
            own["lm_head.weight"] = own["embed_tokens.weight"]
        self.load_state_dict(own)


def plain_loop(model: PlainDecoder, config: OptimizerConfig, fused: bool) -> Callable[[torch.Tensor], float]:
    """The loop's body: a step on int64 rows [B, L] that returns its loss.

    fused asks AdamW for its fused kernel; otherwise AdamW is left as it comes.
    """
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused or None)

    def step(rows: torch.Tensor) -> float:
        logits = model(rows)[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step
