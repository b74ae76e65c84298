"""vLLM's Llama on vLLM's own prefix attention: a prompt is read both ways, what follows one token at a time.

That attention turns off what would be wrong without a word: prompts in chunks, and keys of one request used in another.
"""

from typing import Any

from vllm.config import VllmConfig, get_current_vllm_config
from vllm.model_executor.layers.attention import PrefillPrefixLMAttention
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM


class PrefixLlamaAttention(LlamaAttention):
    """Llama's projections around the other attention."""

    def __init__(self, **keys: Any) -> None:
        super().__init__(**keys)
        name = f"{keys['prefix']}.attn"
        del get_current_vllm_config().compilation_config.static_forward_context[name]  # else its name is taken
        self.attn = PrefillPrefixLMAttention(
            self.num_heads,
            self.head_dim,
            self.scaling,
            num_kv_heads=self.num_kv_heads,
            cache_config=keys["cache_config"],
            quant_config=keys["quant_config"],
            prefix=name,
        )


class PrefixLlamaDecoderLayer(LlamaDecoderLayer):
    """Llama's block with it."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "", config: Any = None) -> None:
        super().__init__(vllm_config, prefix, config, attn_layer_type=PrefixLlamaAttention)


class PrefixLlamaForCausalLM(LlamaForCausalLM):
    """The class that config.json of an exported prefix model names."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=PrefixLlamaDecoderLayer)
