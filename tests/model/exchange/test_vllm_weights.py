"""An embedding that a folder has under several names is one in vLLM, or refused."""

import pytest
import torch

from model.exchange.vllm.weights import with_one_embedding

NAME, OTHERS = "model.shared.weight", ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"]


@pytest.mark.parametrize("names", [[NAME], [NAME, *OTHERS], [*OTHERS, NAME], OTHERS])
def test_it_stands_once_whatever_it_is_called(names):
    rest = ("lm_head.weight", torch.zeros(2))
    found = list(with_one_embedding([rest, *((name, torch.arange(3)) for name in names), rest], NAME, OTHERS))
    assert [name for name, _ in found] == ["lm_head.weight", NAME, "lm_head.weight"]
    assert torch.equal(found[1][1], torch.arange(3))


def test_two_that_differ_are_refused_by_name():
    weights = [(NAME, torch.zeros(3)), (OTHERS[1], torch.ones(3))]
    with pytest.raises(ValueError, match=r"model\.decoder\.embed_tokens\.weight: it differs from the embedding"):
        list(with_one_embedding(weights, NAME, OTHERS))
