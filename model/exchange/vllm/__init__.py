"""A plugin by which vLLM serves what it has no class for as it was trained (entry point `vllm.general_plugins`).

It runs in vLLM's own environment, beside none of our dependencies: `pip install --no-deps shardline` there. vLLM loads
it in each of its processes; a folder's modeling file is not run.
"""

TAUGHT = {
    "prefix_llama": "PrefixLlamaForCausalLM",
    "encdec_rope": "EncDecRopeForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
    "bert": "BertWithoutHead",
}
"""Classes that vLLM has by it, by the type in config.json; each is in the module of its type's name."""


def register() -> None:
    """Makes our classes and types known to vLLM, as often as it is called."""
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    from model.exchange.hf.encdec_rope import EncDecRopeConfig
    from model.exchange.hf.prefix_llama import PrefixLlamaConfig
    from model.exchange.vllm.encoder_text import MODE, EncoderTextConfig

    for config in (PrefixLlamaConfig, EncDecRopeConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    for model_type, name in TAUGHT.items():
        ModelRegistry.register_model(name, f"{__name__}.{model_type}:{name}")
    for model_type in ("encdec_rope", "bart"):
        MODELS_CONFIG_MAP[TAUGHT[model_type]] = EncoderTextConfig
    RENDERER_REGISTRY.renderers[MODE] = (f"{__name__}.encoder_text", "EncoderTextRenderer")
    TokenizerRegistry.tokenizers[MODE] = ("vllm.tokenizers.hf", "CachedHfTokenizer")
