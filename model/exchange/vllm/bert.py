"""BERT for embeddings in vLLM, whose own class for our folders has the head for masks and no embeddings."""

from collections.abc import Iterable

import torch
from vllm.model_executor.models.bert import BertEmbeddingModel
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper


class BertWithoutHead(BertEmbeddingModel):
    """vLLM's BERT, which takes the weights under the names of the model with its head."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """See vLLM."""
        mapper = WeightsMapper(orig_to_new_prefix={"bert.": "model.", "cls.": None})
        return AutoWeightsLoader(self).load_weights(weights, mapper=mapper)
