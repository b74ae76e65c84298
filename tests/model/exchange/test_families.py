"""Every class that a model of ours is written as: the same logits and tokens, and the same weights back."""

import itertools

import pytest
import torch
from safetensors.torch import load_file

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange import parity
from model.exchange.families import FAMILIES, family_of
from model.exchange.families.gptj import share_of_head
from model.exchange.families.layout import Part, Repeated, Transposed, by_head, interleaved
from model.exchange.families.places import misfits
from model.exchange.hf_names import from_hf, one_from_hf
from model.exchange.importing import import_hf, imported_config, load_imported
from model.exchange.in_transformers import cache_for
from model.exchange.parity import run_ours
from tests.model.exchange.exports import EXACTLY, START, export, padded, randomised, tokens
from tests.model.exchange.families import CASES, CLASSIC, GPTJ, GROUPED, LEARNED, MASKED, MODERN, POST, SIZE, config_of

pytestmark = pytest.mark.usefixtures("shipped_code")


def loaded(folder, family):
    """A folder in transformers, as its users load it."""
    auto = getattr(__import__("transformers"), family.architecture.auto)
    return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=True).eval()


@pytest.fixture(scope="module", autouse=True)
def a_short_check():
    """Exports and imports compare less by themselves: the tests here compare more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "NUM_CHECKED", 4)
        yield


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory, tokenizer_model):
    """A model of ours, its folder, and that in transformers."""
    model = randomised(config_of(request.param))
    folder = export(model, tmp_path_factory.mktemp("exported") / "hf", tokenizer_model, as_it_is=True)
    theirs = loaded(folder, family_of(model.config, 3))
    assert type(theirs).__name__ == request.param.partition(",")[0]
    return model, folder, theirs


def test_transformers_gives_our_logits_and_greedy_tokens(exported):
    model, _, theirs = exported
    text, answer = tokens(17, 9)
    kind = model.config.shape
    with torch.no_grad():
        if kind == "encdec":
            answer = torch.cat((torch.tensor([START]), answer))
            logits = theirs(text[None], decoder_input_ids=answer[None]).logits[0]
        else:
            keys = {"prefix_lengths": torch.tensor([len(text)])} if kind == "prefix" else {}
            answer = answer[:0] if kind == "encoder" else answer
            logits = theirs(torch.cat((text, answer))[None], **keys).logits[0]
        torch.testing.assert_close(logits, run_ours(model, text, answer), atol=1e-5, rtol=0)
        if kind != "encoder":
            generated = theirs.generate(**padded([text], left=kind != "encdec"), **EXACTLY, **cache_for(theirs))[
                0, -50:
            ]
            outputs = torch.cat((torch.tensor([START] * (kind == "encdec"), dtype=torch.long), generated))
            assert torch.equal(run_ours(model, text, outputs)[-51:-1].argmax(-1), generated)


def test_transformers_stores_what_was_exported(exported, tmp_path):
    model, folder, theirs = exported
    theirs.save_pretrained(tmp_path / "again")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    if model.config.positions == "t5_bias" and model.config.tie_embeddings:
        assert torch.equal(before.pop("lm_head.weight"), before["shared.weight"])  # stored by T5 once
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)


def test_what_was_exported_comes_back_bit_for_bit_and_leaves_alike(exported, tmp_path, tokenizer_model):
    model, folder, _ = exported
    import_hf(folder, tmp_path / "ours")
    config, _ = imported_config(tmp_path / "ours")
    weights, own = dict(load_imported(tmp_path / "ours")), dict(model.named_parameters())
    assert set(weights) == set(own) and all(torch.equal(weights[name], own[name]) for name in own)
    again = export(randomised(config), tmp_path / "hf", tokenizer_model, state=weights, as_it_is=True)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("case", "kernel"), [("Gemma2ForCausalLM", "eager"), ("Gemma3ForCausalLM", None)])
def test_capped_scores_are_given_to_a_kernel_that_caps_them(case, kernel):
    """Transformers 4 would take one that does not, and say nothing."""
    config = config_of(case)
    assert family_of(config).keys(config, 128).get("_attn_implementation") == kernel


REFUSED = {
    "gpt-2 with grouped heads": (
        CLASSIC | LEARNED | {"num_kv_heads": 2},
        r"model\.num_kv_heads: 2 has no place in Hugging Face's GPT2LMHeadModel, .*; it has as many as num_heads, 4",
    ),
    "gpt-2 with another width of heads": (
        CLASSIC | LEARNED | {"head_dim": 6},
        r"model\.head_dim: 6 has no place in .*GPT2LMHeadModel, .*; its heads are d_model 32 / num_heads 4 wide",
    ),
    "opt with another eps": (
        CLASSIC | LEARNED | {"position_offset": 2, "norm_eps": 1e-6},
        r"model\.norm_eps: 1e-06 has no place in Hugging Face's OPTForCausalLM, .*; it has 1e-05",
    ),
    "bloom with another inner width": (
        CLASSIC | {"positions": "alibi", "embedding_norm": True},
        r"model\.d_ff: 48 has no place in Hugging Face's BloomForCausalLM, .*; it has four times d_model, 128",
    ),
    "bert without segments": (
        POST | MASKED,
        r"model\.segment_embeddings: null has no place in Hugging Face's BertForMaskedLM, .*; it has a table",
    ),
    "gpt-j with another base": (
        GPTJ | {"rope_theta": 500.0},
        r"model\.rope_theta: 500\.0 has no place in Hugging Face's GPTJForCausalLM, .*; it has 10000\.0",
    ),
    "modernbert with all its norms": (
        MODERN | {"first_attention_norm": True, "layer_types": None},
        r"model\.first_attention_norm: true has no place in Hugging Face's ModernBertForMaskedLM, .*; it has false",
    ),
    "modernbert with some biases": (
        MODERN | {"qkv_bias": True},
        r"model\.attention_output_bias: false has no place in .*ModernBertForMaskedLM, .*qkv_bias is true",
    ),
    "gpt-2 without a bias behind attention": (
        CLASSIC | LEARNED | {"attention_output_bias": False},
        r"model\.attention_output_bias: false has no place in Hugging Face's GPT2LMHeadModel, .*and bias is true",
    ),
    "cohere with biases": (
        GROUPED | {"norm": "layernorm", "parallel_block": True, "bias": True},
        r"model\.bias: true has no place in Hugging Face's CohereForCausalLM, .*; it has false",
    ),
    "gemma 3 with capped scores": (
        CASES["Gemma3ForCausalLM"] | {"attention_softcap": 50.0},
        r"model\.attention_softcap: 50\.0 has no place in Hugging Face's Gemma3ForCausalLM, .*; it has null",
    ),
    "gemma 2 with another scale": (
        CASES["Gemma2ForCausalLM"] | {"attention_scale": 0.3},
        r"model\.attention_scale: 0\.3 has no place in Hugging Face's Gemma2ForCausalLM, .*; it has n\*\*-0\.5, n wh",
    ),
    "umt5 whose logits are not scaled": (
        CASES["UMT5ForConditionalGeneration"] | {"logit_scale": 1.0},
        r"model\.logit_scale: 1\.0 has no place in Hugging Face's UMT5ForConditionalGeneration, .*; it has d_mod",
    ),
    "a prefix of another block": (
        CLASSIC | {"shape": "prefix", "norm_placement": "output"},
        r"model\.norm_placement: output has no place in Hugging Face's PrefixDecoderForCausalLM, .*; it has pre or",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_in_the_nearest_class_is_named(case):
    keys, message = REFUSED[case]
    with pytest.raises(Mistake, match=message) as refusal:
        family_of(ModelConfig(**keys))
    assert "\n" not in str(refusal.value)


class WithAKeyMore(ModelConfig):
    """What a config is when a key has been added that no family knows."""

    novelty: int = 0


def test_a_key_that_no_family_knows_is_refused_by_all_unless_it_is_left_alone():
    config = WithAKeyMore(**SIZE)
    assert all("novelty" not in misfits(config, family.places) for family in FAMILIES)
    changed = config.model_copy(update={"novelty": 1})
    assert all("novelty" in misfits(changed, family.places) for family in FAMILIES)
    with pytest.raises(Mistake, match=r"model\.novelty: 1 has no place in Hugging Face's LlamaForCausalLM"):
        family_of(changed)


def test_keys_that_say_how_a_model_runs_or_mean_nothing_there_do_not_count():
    how = {"attention_backend": "sdpa", "activation_checkpointing": "full", "compile": True, "multi_token_depths": 1}
    config = ModelConfig(**CLASSIC | LEARNED | how | {"rope_theta": 500.0, "t5_num_buckets": 8})
    assert family_of(config).architecture.name == "GPT2LMHeadModel"


def test_roberta_is_for_a_padding_right_before_the_first_position_and_bert_for_the_others():
    config = config_of("RobertaForMaskedLM")
    assert family_of(config, 3).architecture.model_type == "roberta"
    assert family_of(config, 1).architecture.model_type == "bert"


def test_a_number_of_rotary_dims_comes_back_from_its_share_of_a_head():
    missed = 0
    for head_dim, rotary_dim in itertools.product(range(2, 257), range(2, 257, 2)):
        if rotary_dim <= head_dim:
            share = share_of_head(rotary_dim, head_dim)
            assert ModelConfig(**SIZE | {"head_dim": head_dim, "rope_fraction": share}).rotary_dim == rotary_dim
            missed += int(head_dim * (rotary_dim / head_dim)) != rotary_dim
    assert missed, "a quotient alone would do"


def test_rows_of_a_head_and_heads_of_a_fused_map_are_put_in_their_order():
    halves, pairs = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]), [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleaved(2, 4, 4).there(halves).tolist() == pairs
    assert interleaved(2, 4, 2).there(halves).tolist() == halves.tolist()
    assert by_head(2, 1).there(torch.tensor([0, 1, 10, 11, 20, 21])).tolist() == [0, 10, 20, 1, 11, 21]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_undo_each_other_in_turn(dtype):
    ours = torch.arange(48.0, dtype=dtype).view(12, 4)
    part = Part("w", (8, 4), 2, (interleaved(2, 4, 2), Repeated(3, 4), Transposed()))
    theirs = part.there(ours)
    assert tuple(theirs.shape) == part.shape == (4, 24)
    assert torch.equal(part.back(theirs), ours[2:10])
    assert torch.equal(one_from_hf({"w": theirs}.__getitem__, {"x": [part]}, "x")[2:], ours[2:10])


def test_rows_that_theirs_has_not_are_zero():
    part = Part("w", (3, 2), 1)
    ((_, weight),) = from_hf(lambda name: torch.ones(3, 2), {"x": [part]})
    assert weight.tolist() == [[0, 0], [1, 1], [1, 1], [1, 1]]
