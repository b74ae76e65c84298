"""BERT for embeddings in vLLM, whose own class for our folders has the head for masks and no embeddings."""

from vllm.model_executor.models.bert import BertEmbeddingModel
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper

from model.exchange.vllm.weights import Weights


class BertWithoutHead(BertEmbeddingModel):
    """vLLM's BERT, which takes the weights under the names of the model with its head."""

    def load_weights(self, weights: Weights) -> set[str]:
        """See vLLM."""
        mapper = WeightsMapper(orig_to_new_prefix={"bert.": "model.", "cls.": None})
        return AutoWeightsLoader(self).load_weights(weights, mapper=mapper)
