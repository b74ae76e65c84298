"""Small random models over letters, and likelihoods under them written out by hand for each shape."""

import numpy as np
import torch

from data_pipeline.config import ObjectiveConfig
from data_pipeline.reading.ranking import Manner
from data_pipeline.vocabulary import Vocabulary
from model.config import ModelConfig
from model.kernels.attention import AttentionPattern
from model.network.transformer import EncoderInput, Transformer
from training.text_model import TextModel

VOCABULARY = Vocabulary(size=130, bos=1, eos=2, special={"mask": 4, "S": 8}, first_sentinel=10, num_sentinels=4)
BOS, EOS, MASK, BLANK = 1, 2, 4, 10


def encode(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def decode(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


OBJECTIVES = {"causal": "next_token", "prefix": "prefix_lm", "encoder": "masked_lm", "encdec": "span_corruption"}


def model_of(shape: str, length: int = 64, objective: str | None = None, **keys) -> TextModel:
    sizes = {"num_layers": 2, "d_model": 32, "num_heads": 4, "num_kv_heads": 2, "d_ff": 64}
    config = ModelConfig(shape=shape, **sizes, init_std=0.2, **keys)
    network = Transformer(config, VOCABULARY.size).double().eval()
    manner = Manner.of(ObjectiveConfig(name=objective or OBJECTIVES[shape]), shape, VOCABULARY)
    return TextModel(network, encode, decode, manner, length, start_id=BOS, eos_id=EOS, pad_id=EOS)


def alone(tokens: list[int], prefix: int) -> tuple:
    length = len(tokens)
    pattern = AttentionPattern.packed(torch.tensor([0, length]), torch.tensor([prefix]))
    return torch.tensor(tokens), torch.arange(length), pattern


def by_hand(model: Transformer, shape: str, query: list[int], choice: list[int]) -> float:
    """Log-likelihood of one choice, written out for each shape."""
    with torch.no_grad():
        if shape == "encoder":
            text, total = [*query, *choice, EOS], 0.0
            for place in range(len(query), len(query) + len(choice)):
                masked = [*text[:place], MASK, *text[place + 1 :]]
                total += model(*alone(masked, len(text))).log_softmax(-1)[place, text[place]].item()
            return total
        if shape == "encdec":
            read, written = [*query, BLANK, EOS], [BOS, BLANK, *choice]
            cross = AttentionPattern.cross(torch.tensor([0, len(written) - 1]), torch.tensor([0, len(read)]))
            logits = model(*alone(written[:-1], 0), encoder=EncoderInput(*alone(read, len(read)), cross))
            return logits.log_softmax(-1)[range(1, len(choice) + 1), choice].sum().item()
        logits = model(*alone([*query, *choice][:-1], len(query) if shape == "prefix" else 0))
        return logits.log_softmax(-1)[range(len(query) - 1, len(query) + len(choice) - 1), choice].sum().item()
