import functools

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizer import AWKWARD_STRINGS, Tokenizer
from data_pipeline.tokenizing.hugging_face import read_folder, without_special
from tests.data_pipeline.tokenizing.made import bert, byte_level, save, unigram

STYLES = ("gpt2", "llama3", "qwen", "smollm", "bert", "unigram")
CONFIGS = {
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|end_of_text|>", "special": True}},
    "qwen": {"bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
}
CHINESE = "\u6a5f\u5668\u5b66\u4e60\u662f\u4eba\u5de5\u667a\u80fd\u7684\u4e00\u4e2a\u5206\u652f\u3002" * 30
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)
NAMES_TEXT = st.lists(
    st.sampled_from(["<s>", "</s>", "<|endoftext|>", "[CLS]", "<pad>", "<think>", " ", "a", "<|", "\n", "7"])
).map("".join)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, stdlib_documents):
    """A folder of each style."""
    texts = [*stdlib_documents[:12], CHINESE]
    made = {}
    for style in STYLES:
        trained = {"bert": bert, "unigram": unigram}.get(style, functools.partial(byte_level, style=style))(texts)
        made[style] = save(trained, tmp_path_factory.mktemp(style), **CONFIGS.get(style, {}))
    return made


@pytest.fixture(scope="module", params=STYLES)
def case(request, folders):
    """One of them, loaded, and the original library's reading of it."""
    original = tokenizers.Tokenizer.from_file(str(folders[request.param] / "tokenizer.json"))
    original.no_truncation()
    original.encode_special_tokens = True
    return request.param, Tokenizer.load(folders[request.param]), original


def test_ids_of_documents_are_those_of_the_tokenizers_package(case, stdlib_documents):
    style, ours, original = case
    assert ours.encoder == ("gigatoken" if style in ("gpt2", "llama3", "qwen") else "tokenizers"), ours.encoder_note
    texts = [*AWKWARD_STRINGS, CHINESE, *stdlib_documents[:40]]
    tokens, lengths = ours.encode_documents(texts)
    ends = np.cumsum(lengths)
    for text, end, length in zip(texts, ends, lengths, strict=True):
        expected = original.encode(text, add_special_tokens=False).ids
        document = tokens[end - length : end].tolist()
        if style == "unigram" and "</s>" in text:
            assert set(document[1:-1]).isdisjoint({ours.eos_id, ours.pad_id})
        else:
            assert document == [ours.bos_id, *expected, ours.eos_id]


def test_unknown_characters_score_as_in_the_unigram_model_itself(folders):
    definition = read_folder(folders["unigram"] / "tokenizer.json")
    theirs, ours = definition.tree["model"]["vocab"], without_special(definition)["model"]["vocab"]
    assert len(ours) > len(theirs)  # of added tokens; what is unknown scores 10 below the least likely piece
    assert min(score for _, score in ours) == min(score for _, score in theirs)


@given(text=ANY_TEXT | NAMES_TEXT)
def test_no_text_becomes_a_special_token(case, text):
    style, ours, original = case
    ids = ours.encode(text).tolist()
    assert set(ids).isdisjoint(set(ours.definition.special.values()) - {ours.unk_id})
    if style != "unigram":
        assert ids == original.encode(text, add_special_tokens=False).ids
    if style in ("gpt2", "llama3", "smollm"):
        assert ours.decode(ids) == text


@pytest.mark.parametrize(
    ("style", "bos", "eos"),
    [
        ("gpt2", "<|endoftext|>", "<|endoftext|>"),
        ("llama3", "<|begin_of_text|>", "<|end_of_text|>"),
        ("qwen", "<|endoftext|>", "<|endoftext|>"),
        ("smollm", "<|endoftext|>", "<|endoftext|>"),
        ("bert", "[CLS]", "[SEP]"),
        ("unigram", "</s>", "</s>"),
    ],
)
def test_documents_begin_and_end_as_the_files_say_or_with_the_usual_pieces(folders, style, bos, eos):
    ours = Tokenizer.load(folders[style])
    assert ours.decode([ours.bos_id, ours.eos_id], show_special=True) == bos + eos
    assert ours.decode([ours.bos_id, *ours.encode("a b"), ours.eos_id]) == "a b"


def test_added_tokens_that_are_not_special_are_text_with_an_id_of_its_own(folders):
    ours = Tokenizer.load(folders["qwen"])
    ids = ours.encode("a <think> b").tolist()
    assert ours.definition.ids["<think>"] in ids
    assert ours.decode(ids) == "a <think> b"


def test_what_objectives_need_gets_ids_after_its_own(folders):
    plain = Tokenizer.load(folders["gpt2"])
    assert (plain.vocab_size, plain.sentinel_ids) == (600, [])
    more = Tokenizer.load(TokenizerConfig(path=str(folders["gpt2"]), extend=True, num_sentinels=3))
    assert more.vocab_size == 600 + 6 + 3
    assert more.special_ids == {"mask": 600, "cls": 601, "sep": 602, "R": 603, "S": 604, "X": 605}
    assert more.sentinel_ids == [606, 607, 608]
    assert more.fingerprint != plain.fingerprint
    assert more.encode("<mask> <extra_id_0>").max() < 600
    assert more.decode([600, 606], show_special=True) == "<mask><extra_id_0>"
    assert more.record()["vocab_size"] == 609
    masked = Tokenizer.load(TokenizerConfig(path=str(folders["bert"]), extend=True, num_sentinels=1))
    assert masked.special_ids["mask"] == masked.definition.ids["[MASK]"]
    assert masked.added == ["[R]", "[S]", "[X]", "<extra_id_0>"]


def test_sentinels_of_t5_count_down_and_none_are_added(folders):
    ours = Tokenizer.load(TokenizerConfig(path=str(folders["unigram"]), extend=True, bos_token="<pad>"))
    assert ours.sentinel_ids == list(range(609, 599, -1))
    assert ours.added == ["<mask>", "<cls>", "<sep>", "[R]", "[S]", "[X]"]
    assert (ours.record()["first_sentinel_id"], ours.record()["sentinel_step"]) == (609, -1)
    assert ours.bos_id == ours.pad_id != ours.eos_id


def test_words_begin_where_they_do_in_the_text(case):
    style, ours, _ = case
    starts, ends = ours.word_borders
    ids = ours.encode("def naive_sum(values): return values \u5b66\u4e60").tolist()
    words, ended = [], True
    for token in ids:
        if starts[token] or ended:
            words.append([])
        words[-1].append(token)
        ended = ends[token]
    # Llama 3 and Qwen have pieces of a mark and letters
    texts = {ours.decode(word).strip(" _(") for word in words}
    assert {"def", "naive", "sum", "values", "return"} <= texts
    assert style == "bert" or {"\u5b66", "\u4e60"} <= texts


@pytest.mark.parametrize("extend", [False, True])
def test_transformers_reads_what_is_handed_on_and_gives_the_same_ids(case, tmp_path, extend, stdlib_documents):
    style, ours, _ = case
    if extend:
        ours = Tokenizer.load(TokenizerConfig(path=str(ours.model_path.parent), extend=True, num_sentinels=2))
    files = ours.hugging_face_files()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert extend or files["tokenizer.json"] == ours.model_path.read_bytes()
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert len(theirs) == ours.vocab_size
    for text in (*AWKWARD_STRINGS, *stdlib_documents[:5]):
        if not (style == "unigram" and "</s>" in text):
            ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
            assert ids == ours.encode(text).tolist()
    assert not extend or theirs.mask_token_id == ours.special_ids["mask"]


def test_files_that_are_no_tokenizer_are_one_sentence(tmp_path, folders):
    for content, words in (("[1]", "is no JSON object"), ("{}", "no model with a vocabulary"), ("{", "is no JSON")):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=rf"tokenizer\.json: .*{words}"):
            Tokenizer.load(tmp_path)
    text = (folders["gpt2"] / "tokenizer.json").read_text().replace('"ByteLevel"', '"Unheard"')
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json: the tokenizers package cannot read it"):
        Tokenizer.load(tmp_path)


def test_a_split_pattern_is_only_for_ranks(folders):
    with pytest.raises(ValueError, match=r"split_pattern: is for tiktoken's ranks; .*json is hugging_face"):
        Tokenizer.load(TokenizerConfig(path=str(folders["gpt2"]), split_pattern="gpt2"))
