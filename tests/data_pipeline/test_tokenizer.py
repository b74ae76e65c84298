import gzip
import json
import shutil
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from common.mistakes import Mistake
from data_pipeline.building.tokenizer_training import MAX_LINE_BYTES, MODEL_NAME, SPECIAL, split_lines
from data_pipeline.config import SourceConfig, TokenizerConfig
from data_pipeline.tokenizer import AWKWARD_STRINGS, Tokenizer, train_tokenizer
from data_pipeline.tokenizing import fast_encoder
from data_pipeline.tokenizing import sentence_pieces as module

WORD_MARK = "\u2581"
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
CODE_TEXT = st.text(alphabet=list("  \n\t<>sS[]/axeioutrn_\"'.,()\u4e2d\u6587\u00e9\U0001f600\x00"), max_size=80)


@pytest.fixture(scope="module")
def reference(tokenizer):
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.model_path))


@pytest.mark.parametrize("text", AWKWARD_STRINGS)
def test_ids_of_awkward_strings_are_sentencepiece_s(tokenizer, reference, text):
    assert tokenizer.encoder == "gigatoken"
    assert tokenizer.encode(text).tolist() == reference.EncodeAsIds(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace(WORD_MARK, " ")


def test_ids_of_hundreds_of_documents_are_sentencepiece_s(tokenizer, reference, stdlib_documents):
    assert len(stdlib_documents) > 200
    for text in stdlib_documents:
        assert np.array_equal(tokenizer.encode(text), reference.EncodeAsNumpy(text))


@given(text=ANY_TEXT | CODE_TEXT)
def test_ids_of_any_text_are_sentencepiece_s_and_decode_to_it(tokenizer, reference, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == reference.EncodeAsIds(text)
    assert tokenizer.decode(ids) == text.replace(WORD_MARK, " ")


def test_names_of_special_pieces_in_the_text_stay_text(tokenizer):
    names = ["<unk>", "<s>", "</s>", "<pad>", *SPECIAL, "<extra_id_0>", "<extra_id_7>", "<0x41>"]
    special = set(range(4 + len(SPECIAL) + 8))
    for name in names:
        assert special.isdisjoint(tokenizer.encode(f"a {name} b").tolist())
        assert tokenizer.decode(tokenizer.encode(name)) == name


def test_special_pieces_have_their_fixed_ids(tokenizer, reference):
    names = ["<unk>", "<s>", "</s>", "<pad>", *SPECIAL, *(f"<extra_id_{number}>" for number in range(8))]
    assert [reference.id_to_piece(index) for index in range(len(names))] == names
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, 3)
    assert tokenizer.vocab_size == 2000


def test_documents_are_their_ids_between_bos_and_eos(tokenizer):
    texts = ["one", "", " two\n", "<s>"]
    tokens, lengths = tokenizer.encode_documents(texts)
    assert tokens.dtype == np.int32
    expected = [[1, *tokenizer.encode(text).tolist(), 2] for text in texts]
    assert lengths.tolist() == [len(ids) for ids in expected]
    assert tokens.tolist() == [token for ids in expected for token in ids]
    assert [len(part) for part in tokenizer.encode_documents([])] == [0, 0]


def test_decoding_leaves_special_pieces_out_or_names_them(tokenizer):
    ids = [1, *tokenizer.encode(" a"), 10, *tokenizer.encode(" b"), 0, 2]
    assert tokenizer.decode(ids) == " a b"
    assert tokenizer.decode(np.array(ids), show_special=True) == "<s> a<extra_id_0> b<unk></s>"
    with pytest.raises(ValueError, match="token id 2000 is not in the vocabulary of 2000"):
        tokenizer.decode([1, 2000])


def test_half_a_character_decodes_to_the_replacement_mark(tokenizer):
    ids = tokenizer.encode("\U0001f600")
    assert len(ids) == 4
    assert "\ufffd" in tokenizer.decode(ids[:2])


@pytest.mark.parametrize("fast", ["auto", "off"])
def test_long_texts_cut_into_pieces_have_the_ids_of_the_whole(
    tokenizer, reference, stdlib_documents, monkeypatch, fast
):
    monkeypatch.setattr(module, "LONG_TEXT", 100)
    cutting = Tokenizer.load(tokenizer.model_path, fast)
    texts = [*stdlib_documents[:20], "\u4e2d\u6587\u3002" * 500, " " * 777, "a" * 777, "=" * 777 + "\n" * 777]
    for text in texts:
        assert "".join(cutting._pieces(text)) == text
        assert np.array_equal(cutting.encode(text), reference.EncodeAsNumpy(text))


def test_the_fast_encoder_forgets_without_changing_ids(tokenizer_config, reference, monkeypatch, stdlib_documents):
    forgetful = Tokenizer.load(tokenizer_config.path)
    before = forgetful._fast._encoder
    limit = forgetful._fast._limit
    monkeypatch.setattr(forgetful._fast, "_limit", 0)
    forgetful.encode_documents(stdlib_documents[:3])
    assert forgetful._fast._encoder is before
    monkeypatch.setattr(fast_encoder, "MIN_CHARACTERS", 1)
    tokens, _ = forgetful.encode_documents(stdlib_documents[:3])
    assert forgetful._fast._encoder is not before
    assert forgetful._fast._limit == 0 < limit
    again, _ = forgetful.encode_documents(stdlib_documents[:3])
    assert np.array_equal(tokens, again)


def test_an_encoder_with_other_ids_is_found_out_and_replaced(tokenizer_config, monkeypatch):
    monkeypatch.setattr(fast_encoder.FastEncoder, "encode", lambda self, text: np.zeros(len(text), np.uint32))
    careful = Tokenizer.load(tokenizer_config.path)
    assert careful.encoder == "sentencepiece"
    assert "differ on awkward strings" in careful.encoder_note
    assert careful.decode(careful.encode("text")) == "text"


def test_loading_without_a_tokenizer_names_the_command(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.path: .* holds no tokenizer\.model; run 'shardline tokenizer"):
        Tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"tokenizer\.model: not a sentencepiece model"):
        Tokenizer.load(tmp_path)


# ---- training


def train(tmp_path, texts, sources=None, **settings):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    chosen = {"path": str(tmp_path / "tokenizer"), "vocab_size": 600, "num_sentinels": 4, **settings}
    sources = sources or [SourceConfig(path=str(tmp_path / "a.jsonl"))]
    return train_tokenizer(TokenizerConfig(**chosen), sources)


def test_the_same_text_gives_the_same_vocabulary_whatever_the_threads(tmp_path, stdlib_documents, monkeypatch):
    prints = []
    for threads in (1, 4):
        monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
        train(tmp_path, stdlib_documents[:30], path=str(tmp_path / str(threads)), training_megabytes=0.3)
        prints.append(Tokenizer.load(tmp_path / str(threads)).fingerprint)
    assert prints[0] == prints[1]


def test_a_trained_tokenizer_is_reused_and_another_config_is_refused(tmp_path, stdlib_documents):
    first = train(tmp_path, stdlib_documents[:10])
    assert not first.reused
    assert first.training_bytes == sum(len(text.encode()) for text in stdlib_documents[:10])
    assert train(tmp_path, stdlib_documents[:10]).reused
    with pytest.raises(ValueError, match=r"trained with tokenizer\.vocab_size 600, not 700; choose another"):
        train(tmp_path, stdlib_documents[:10], vocab_size=700)


def test_a_tokenizer_serves_sources_that_are_added_to_those_it_was_trained_on(tmp_path, stdlib_documents):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, text in zip(paths, stdlib_documents[:2], strict=True):
        path.write_text(text * 3)
    first, second = ([SourceConfig(path=str(path))] for path in paths)
    config = TokenizerConfig(path=str(tmp_path / "tokenizer"), vocab_size=400, num_sentinels=8)
    train_tokenizer(config, first)
    assert train_tokenizer(config, first + second).reused
    with pytest.raises(ValueError, match=r"trained with data\.sources .*; choose another tokenizer\.path"):
        train_tokenizer(config, second + first)


def test_an_interrupted_training_is_started_again(tmp_path, stdlib_documents):
    train(tmp_path, stdlib_documents[:10])
    (tmp_path / "tokenizer" / MODEL_NAME).unlink()
    assert not train(tmp_path, stdlib_documents[:10]).reused


def test_a_model_of_another_hand_is_used_but_never_overwritten(tmp_path, tokenizer, stdlib_documents):
    model = tmp_path / "tokenizer" / MODEL_NAME
    model.parent.mkdir()
    model.write_bytes(tokenizer.model_path.read_bytes())
    with pytest.raises(ValueError, match=r"holds a tokenizer\.model that was not trained here .*move it away"):
        train(tmp_path, stdlib_documents[:10])
    assert Tokenizer.load(model.parent).fingerprint == tokenizer.fingerprint
    model.unlink()
    train(tmp_path, stdlib_documents[:10])
    model.write_bytes(tokenizer.model_path.read_bytes())
    with pytest.raises(ValueError, match=r"tokenizer\.model: is not the one that tokenizer_info\.json"):
        train(tmp_path, stdlib_documents[:10])


def test_no_more_than_the_asked_megabytes_are_sampled(tmp_path, stdlib_documents):
    report = train(tmp_path, stdlib_documents, training_megabytes=0.2)
    assert 190_000 < report.training_bytes <= 200_000


def test_a_vocabulary_too_large_for_the_text_names_the_largest_one(tmp_path):
    with pytest.raises(ValueError, match=r"vocab_size: 5000 is too large for this text; use at most \d+") as caught:
        train(tmp_path, ["a few words of text, no more"], vocab_size=5000)
    largest = int(str(caught.value).split("at most ")[1].split(",")[0])
    train(tmp_path, ["a few words of text, no more"], vocab_size=largest)
    assert Tokenizer.load(tmp_path / "tokenizer").vocab_size == largest


def test_a_vocabulary_too_small_is_refused_with_the_least_size(tmp_path):
    with pytest.raises(ValueError, match=r"has no room for 256 bytes, 100 sentinels and 10 other .* at least 367"):
        train(tmp_path, ["text"], vocab_size=300, num_sentinels=100)
    with pytest.raises(ValueError, match=r"no room for the characters of this text; use at least"):
        train(tmp_path, ["".join(map(chr, range(0x4E00, 0x4F00)))], vocab_size=300, num_sentinels=0)


def test_sources_without_text_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"data\.sources: hold no text .*\(dropped: 2 missing_text\)"):
        (tmp_path / "b.jsonl").write_text('{"body": "x"}\n{}\n')
        train(tmp_path, [], [SourceConfig(path=str(tmp_path / "b.jsonl"))])
    with pytest.raises(ValueError, match=r"data\.sources: is empty"):
        train_tokenizer(TokenizerConfig(path=str(tmp_path / "t")), [])


def test_a_truncated_source_stops_training_with_its_own_sentence(tmp_path, stdlib_documents):
    whole = gzip.compress("\n".join(stdlib_documents[:20]).encode())
    (tmp_path / "b.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"b\.txt\.gz: the gzip stream is truncated"):
        train(tmp_path, [], [SourceConfig(path=str(tmp_path / "b.txt.gz"))])
    assert not (tmp_path / "tokenizer").exists()


def test_training_says_nothing(tmp_path, stdlib_documents, capfd):
    train(tmp_path, stdlib_documents[:10])
    assert capfd.readouterr() == ("", "")


@given(text=st.text(alphabet="ab \n\r\u4e2d\U0001f600", max_size=30), repeat=st.integers(1, 400))
def test_training_lines_are_short_and_lose_nothing_but_line_feeds(text, repeat):
    lines = list(split_lines(text * repeat))
    assert "".join(lines) == (text * repeat).replace("\n", "")
    assert all(0 < len(line.encode()) <= MAX_LINE_BYTES for line in lines)


def test_words_begin_and_end_where_letters_and_digits_do(tokenizer):
    starts, ends = tokenizer.word_borders
    ids = tokenizer.encode("def naive_sum(values):\n    return 1234 + values\u4e2d\u6587\u00e9t\u00e9")
    words, ended = [], True
    for token in ids.tolist():
        if starts[token] or ended:
            words.append([])
        words[-1].append(token)
        ended = ends[token]
    texts = [tokenizer.decode(word).strip() for word in words]
    assert texts[0] == "def"
    assert {"naive", "sum", "values", "return", "1234", "\u4e2d", "\u6587"} <= set(texts)
    special = [tokenizer.bos_id, tokenizer.eos_id, *tokenizer.sentinel_ids]
    assert starts[special].all() and ends[special].all()


@pytest.mark.parametrize("fast_encoder", ["auto", "off"])
def test_where_gigatoken_is_missing_sentencepiece_encodes_and_says_why(tokenizer_config, monkeypatch, fast_encoder):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    monkeypatch.delitem(sys.modules, "data_pipeline.tokenizing.fast_encoder", raising=False)
    tokenizer = Tokenizer.load(tokenizer_config.path, fast_encoder)
    assert tokenizer.encoder == "sentencepiece"
    reason = {"auto": "gigatoken is not installed; pip install", "off": "fast_encoder is off"}[fast_encoder]
    assert reason in tokenizer.encoder_note


def test_a_record_whose_settings_are_none_is_named(tmp_path, tokenizer):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizer.model_path.parent, folder)
    record = json.loads((folder / "tokenizer_info.json").read_text())
    config = TokenizerConfig(path=str(folder), vocab_size=2000)
    for settings in (7, None, "x"):
        (folder / "tokenizer_info.json").write_text(json.dumps(record | {"settings": settings}))
        with pytest.raises(Mistake, match=r"does not describe a tokenizer, for its settings is"):
            train_tokenizer(config, [])


def test_bytes_that_sentencepiece_refuses_without_a_word_are_one_sentence(tmp_path):
    (tmp_path / MODEL_NAME).write_bytes(b"\xff\xfe\xc0\x80" * 40)
    with pytest.raises(Mistake, match=r"not a sentencepiece model \(.+\)"):
        Tokenizer.load(tmp_path)
