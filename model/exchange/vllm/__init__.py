"""A plugin by which vLLM serves our prefix models as they were trained (entry point `vllm.general_plugins`).

It runs in vLLM's own environment, beside none of our dependencies: `pip install --no-deps shardline` there. vLLM loads
it in each of its processes; the folder's modeling file is not run.
"""

TAUGHT = ("prefix_llama",)
"""Types of shipped classes that vLLM serves with it."""


def register() -> None:
    """Makes the type `prefix_llama` and its class known, as often as it is called."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from model.exchange.hf.prefix_llama import PrefixLlamaConfig

    AutoConfig.register(PrefixLlamaConfig.model_type, PrefixLlamaConfig, exist_ok=True)
    ModelRegistry.register_model("PrefixLlamaForCausalLM", "model.exchange.vllm.prefix_llama:PrefixLlamaForCausalLM")
