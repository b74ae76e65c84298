"""Who can know what: no document of another, and inside one exactly what its shape says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.streams import POSITIONS, SHAPES, VOCAB, inputs_of, labels_of, make_document, packs, tiny_model

VARIANTS = [
    {"positions": positions, "parallel_block": parallel, "embedding_norm": not parallel, "qk_norm": parallel}
    for positions in POSITIONS
    for parallel in (False, True)
] + [{"sliding_window": window, "layer_types": ["sliding_attention", "full_attention"]} for window in (2, 5)]
MODELS: dict[tuple, torch.nn.Module] = {}


def model_of(shape, variant, dtype=torch.float64):
    if shape == "encdec":
        variant = variant | {"parallel_block": False}
    key = (shape, dtype, str(variant))
    if key not in MODELS:
        MODELS[key] = tiny_model(shape, dtype, **variant)
    return MODELS[key]


def logits_by_document(model, documents):
    with torch.no_grad():
        return model(**inputs_of(documents)).split([len(document.tokens) for document in documents])


def changed(tokens, place):
    """The tokens with another one at this place."""
    tokens = tokens.clone()
    tokens[place] = (tokens[place] + 1) % VOCAB
    return tokens


def alterations(document):
    """The document with one token changed, each in turn, in each of its streams."""
    for place in range(len(document.tokens)):
        yield document._replace(tokens=changed(document.tokens, place))
    if document.encoder_tokens is not None:
        for place in range(len(document.encoder_tokens)):
            yield document._replace(encoder_tokens=changed(document.encoder_tokens, place))


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), variant=st.sampled_from(VARIANTS))
def test_changing_any_token_of_a_document_changes_no_bit_of_another_ones_logits(shape, data, variant):
    documents = data.draw(packs(shape))
    model = model_of(shape, variant, torch.float32)
    before = logits_by_document(model, documents)
    for which, document in enumerate(documents):
        for altered in alterations(document):
            after = logits_by_document(model, [*documents[:which], altered, *documents[which + 1 :]])
            others = [i for i in range(len(documents)) if i != which]
            assert all(torch.equal(after[i], before[i]) for i in others)


@pytest.mark.parametrize("shape", SHAPES)
def test_long_documents_keep_to_themselves_too(shape):
    """Long enough for the kernels that short ones do not reach."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(300, 90, 260), (300, 90, 260), (210, 0, 5)]
    documents = [make_document(shape, n, p, m, generator) for n, p, m in sizes]
    model = tiny_model(shape, torch.float32)
    before = logits_by_document(model, documents)
    for which, document in enumerate(documents):
        streams = [document.tokens, document.encoder_tokens]
        flipped = [None if stream is None else (stream + 1) % VOCAB for stream in streams]
        altered = document._replace(tokens=flipped[0], encoder_tokens=flipped[1])
        after = logits_by_document(model, [*documents[:which], altered, *documents[which + 1 :]])
        for i in range(len(documents)):
            assert torch.equal(after[i], before[i]) == (i != which)


def dependence(model, documents):
    """Bool [T, S + T]: whether the logits of a token have a gradient at a token of either stream (encoder's first)."""
    caught = []
    hook = model.embedding.register_forward_hook(lambda _module, _inputs, out: caught.append(out))
    logits = model(**inputs_of(documents))
    hook.remove()
    weights = torch.randn(VOCAB, dtype=logits.dtype, generator=torch.Generator().manual_seed(3))
    rows = [torch.autograd.grad(row @ weights, caught[0], retain_graph=True)[0] for row in logits]
    return torch.stack([(row != 0).any(-1) for row in rows])


def allowed(documents):
    """Bool [T, S + T]: what each token may know, from the definition of the shapes."""
    read = [which for which, d in enumerate(documents) if d.encoder_tokens is not None for _ in d.encoder_tokens]
    own = [(which, place) for which, d in enumerate(documents) for place in range(len(d.tokens))]

    def may_know(which, place, other, at):
        return which == other and (at <= place or max(at, place) < documents[which].prefix)

    return torch.tensor(
        [[which == other for other in read] + [may_know(which, place, *token) for token in own] for which, place in own]
    )


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), variant=st.sampled_from(VARIANTS))
def test_a_token_knows_its_whole_prefix_the_past_after_it_its_encoder_and_nothing_else(shape, data, variant):
    """By gradients, all positions: every token that may be known is, and no other.

    A prefix token depends on every prefix token and no suffix token, a suffix token on none after it, a decoder token
    on all of the document its encoder read.
    """
    documents = data.draw(packs(shape))
    assert torch.equal(dependence(model_of(shape, variant), documents), allowed(documents))


def loss_and_gradients(model, documents):
    """Weights that an empty stream leaves untouched have a gradient of zero."""
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    loss = model(**inputs_of(documents), labels=labels_of(documents), z_loss=0.01).loss_sum
    loss.backward()
    return loss.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), variant=st.sampled_from(VARIANTS), tie=st.booleans())
def test_a_pack_has_the_loss_and_gradients_of_its_documents_one_at_a_time(shape, data, variant, tie):
    documents = data.draw(packs(shape))
    model = model_of(shape, variant | {"tie_embeddings": tie, "bias": tie, "norm": "layernorm" if tie else "rmsnorm"})
    loss, gradients = loss_and_gradients(model, documents)
    alone = [loss_and_gradients(model, [document]) for document in documents if len(document.tokens)]
    torch.testing.assert_close(loss, sum(one for one, _ in alone), atol=1e-9, rtol=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, sum(grads[name] for _, grads in alone), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_so_it_is_in_fp32_with_documents_of_hundreds_of_tokens(shape):
    generator = torch.Generator().manual_seed(0)
    sizes = [(300, 90, 260), (250, 250, 3), (33, 0, 190)]
    documents = [make_document(shape, n, p, m, generator) for n, p, m in sizes]
    model = tiny_model(shape, torch.float32)
    loss, gradients = loss_and_gradients(model, documents)
    alone = [loss_and_gradients(model, [document]) for document in documents]
    torch.testing.assert_close(loss, sum(one for one, _ in alone), atol=0, rtol=1e-6)
    for name, gradient in gradients.items():
        expected = sum(grads[name] for _, grads in alone)
        assert (gradient - expected).norm() <= 1e-5 * expected.norm(), name
