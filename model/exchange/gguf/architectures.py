"""The architectures of GGUF that models of ours are written as.

causal, prefix   rms_kinds.py (llama, qwen3, phi3, smollm3, granite_swa, olmo2, exaone4, gemma, gemma2, gemma3),
                 layer_norm_kinds.py (gpt2, mpt, bloom, gptneox, phi2, command-r, cohere2)
encoder          rms_kinds.py (llada), layer_norm_kinds.py (bert)
encdec           t5

A key of `ModelConfig` that an architecture does not list has to be as it is where nobody sets it, so that a switch that
comes new is refused by its name until it has a place here.
"""

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.families.places import ANY, misfits, only, refusal
from model.exchange.gguf.architecture import GgufArchitecture
from model.exchange.gguf.layer_norm_kinds import BERT, BLOOM, COHERE2, COMMAND_R, GPT2, GPTNEOX, MPT, PHI2
from model.exchange.gguf.rms_kinds import (
    EXAONE4,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GRANITE_SWA,
    LLADA,
    LLAMA,
    OLMO2,
    PHI3,
    QWEN3,
    SMOLLM3,
)

T5_MAX_DISTANCE = 128
"""That of llama.cpp's code, which no key can change."""
T5 = GgufArchitecture(
    "t5",
    {
        "positions": only("positions", "t5_bias"),
        "t5_max_distance": only("t5_max_distance", T5_MAX_DISTANCE),
        "activation": only("activation", "relu", "geglu"),  # with any gate it takes GELU, whatever a file says
        "num_kv_heads": ANY,
        "head_dim": ANY,
    },
    shapes=("encdec",),
)
ARCHITECTURES = (
    EXAONE4,
    QWEN3,
    LLAMA,
    PHI3,
    SMOLLM3,
    GRANITE_SWA,
    OLMO2,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GPT2,
    BLOOM,
    MPT,
    PHI2,
    GPTNEOX,
    COMMAND_R,
    COHERE2,
    LLADA,
    BERT,
    T5,
)
"""Where several have a place for a model, it is written as the first of them."""


def gguf_architecture(config: ModelConfig) -> GgufArchitecture:
    """The architecture that computes what this model computes. Mistake naming the key that the nearest one lacks."""
    candidates = [each for each in ARCHITECTURES if config.shape in each.shapes]
    found = min(candidates, key=lambda each: len(misfits(config, each.places)))
    for key in misfits(config, found.places):
        raise Mistake(refusal(config, found.places, key, f"GGUF's architecture {found.name}"))
    return found
