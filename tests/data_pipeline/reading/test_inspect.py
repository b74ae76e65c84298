"""Inspecting tells what is there and shows samples as the model sees them; verifying reads every byte."""

import pytest

from data_pipeline.config import ObjectiveConfig
from data_pipeline.reading.inspect import inspect_dataset, verify_dataset


class Letters:
    """A tokenizer of letters: 1 and 2 are the borders of a document."""

    fingerprint = "synthetic"

    def decode(self, ids, show_special=False):
        names = {1: "<s>", 2: "</s>"} if show_special else {1: "", 2: ""}
        return "".join(names.get(int(token), chr(int(token))) for token in ids)


def document(text):
    return [1, *map(ord, text), 2]


@pytest.fixture
def folder(tmp_path, write_dataset):
    documents = [document(text) for text in ("hello", "a long sentence that is cut", "x", "end of it")]
    return write_dataset(tmp_path / "letters", {"train": [documents[:3], documents[3:]], "validation": [[[1, 65, 2]]]})


def test_it_counts_what_is_there(folder):
    facts = inspect_dataset(folder, sequence_length=16)
    train, validation = facts.splits
    assert (train.name, train.num_shards, train.num_documents) == ("train", 2, 4)
    assert train.num_tokens == 7 + 29 + 3 + 11
    assert train.source_bytes == 3 * train.num_tokens
    assert (train.bytes_per_token, train.mean_document_length) == (3, 12.5)
    assert (train.num_samples, train.num_unused_tokens) == (3, 1)
    assert (validation.num_tokens, validation.num_samples, validation.num_examined) == (3, 0, 0)
    assert (facts.vocab_size, facts.dtype, facts.samples) == (1000, "uint16", [])
    assert facts.counts == {"documents_read": 5}


def test_averages_are_those_of_the_packed_samples(folder):
    train = inspect_dataset(folder, sequence_length=16).splits[0]
    # 17 tokens each: [7 of 7, 10 of 29], [17 of 29], [4 of 29, 3 of 3, 10 of 11]
    assert train.num_examined == 3
    assert train.documents_per_sample == 6 / 3
    assert train.cut_share == 4 / 6
    assert train.padding_share == (1 + 0 + 2) / 48


def test_samples_are_shown_document_by_document_as_the_model_sees_them(folder):
    facts = inspect_dataset(folder, Letters(), sequence_length=16, num_samples=10)
    assert [[view.text for view in sample.documents] for sample in facts.samples] == [
        ["<s>hello</s>", "<s>a long se"],
        ["entence that is c"],
        ["cut</s>", "<s>x</s>", "<s>end of it"],
        ["t</s>"],
    ]
    first = facts.samples[0]
    assert (first.index, first.num_padding, first.num_cut) == (0, 1, 1)
    assert [(view.num_tokens, view.num_targets, view.prefix_length) for view in first.documents] == [
        (6, 6, 0),
        (9, 9, 0),
    ]


@pytest.mark.parametrize("shape", ["causal", "prefix", "encdec"])
def test_inputs_and_targets_are_shown_as_a_model_of_the_shape_reads_them(folder, shape):
    objective = ObjectiveConfig(name="prefix_lm")
    facts = inspect_dataset(folder, Letters(), sequence_length=16, num_samples=10, objective=objective, shape=shape)
    assert (facts.shape, facts.objective, facts.sequence_length) == (shape, "prefix_lm", 16)
    for sample in facts.samples:
        for view in sample.documents:
            if shape == "encdec":
                assert view.text == f"<s>{view.targets}" and view.encoder
                assert (view.prefix_length, view.num_targets) == (0, view.num_tokens)
            else:
                assert view.encoder is None and view.text.endswith(view.targets)
                assert (view.prefix_length > 0) == (shape == "prefix")
                assert 0 < view.num_targets <= view.num_tokens
    whole = "".join((view.encoder or "") + (view.targets if view.encoder else view.text) for view in documents(facts))
    text = "<s>hello</s><s>a long sentence that is cut</s><s>x</s><s>end of it</s>"
    # letters and borders are tokens alike
    num_tokens = [len(row.replace("<s>", "^").replace("</s>", "$")) for row in (whole, text)]
    assert num_tokens[0] + sum(sample.num_left_out for sample in facts.samples) == num_tokens[1]
    assert whole == text or shape == "encdec"


def documents(facts):
    """All documents shown."""
    return [view for sample in facts.samples for view in sample.documents]


def test_an_encoder_is_shown_what_it_reads_and_what_is_asked_of_it(text_dataset):
    tokenizer = Letters()
    tokenizer.decode = lambda ids, show_special=False: " ".join(str(int(token)) for token in ids)
    options = {
        "shape": "encoder",
        "sequence_length": 64,
        "num_samples": 5,
        "objective": ObjectiveConfig(name="masked_lm"),
    }
    facts = inspect_dataset(text_dataset, tokenizer, **options)
    for view in documents(facts):
        assert view.num_tokens == view.prefix_length == len(view.text.split())
        assert view.num_targets == len(view.targets.split()) >= 1
        assert view.encoder is None


def test_what_batches_hold_is_averaged_for_every_shape(text_dataset):
    options = {"shape": "encdec", "sequence_length": 64, "objective": ObjectiveConfig(name="span_corruption")}
    facts = inspect_dataset(text_dataset, **options)
    train = facts.splits[0]
    assert facts.window >= 64 > facts.target_length > 0
    assert train.num_samples == train.num_tokens // facts.window
    assert 0 < train.target_share < 1 and 0 < train.padding_share < 0.5
    assert 0 <= train.left_out_share < 0.05 and train.documents_per_sample > 1


def test_any_split_can_be_shown(folder):
    facts = inspect_dataset(folder, Letters(), split="validation", sequence_length=16)
    assert [view.text for sample in facts.samples for view in sample.documents] == ["<s>A</s>"]
    with pytest.raises(ValueError, match="no split 'test'"):
        inspect_dataset(folder, Letters(), split="test")


def test_another_tokenizer_is_refused(folder):
    other = Letters()
    other.fingerprint = "other"
    with pytest.raises(ValueError, match="built with the tokenizer synthetic, but this one is other"):
        inspect_dataset(folder, other)


def test_a_real_tokenizer_shows_real_text(tmp_path, tokenizer, write_dataset):
    tokens, lengths = tokenizer.encode_documents(["def f(x):\n\treturn x", "naïve 中文"])
    folder = write_dataset(tmp_path, {"train": [[tokens[: lengths[0]], tokens[lengths[0] :]]]}, tokenizer.vocab_size)
    body = (folder / "manifest.json").read_text().replace('"synthetic"', f'"{tokenizer.fingerprint}"')
    (folder / "manifest.json").write_text(body)
    facts = inspect_dataset(folder, tokenizer, sequence_length=100)
    texts = [view.text for sample in facts.samples for view in sample.documents]
    assert texts == ["<s>def f(x):\n\treturn x</s>", "<s>naïve 中文</s>"]


def test_verifying_reads_everything_and_reports_how_far_it_is(folder):
    steps = []
    total = verify_dataset(folder, lambda done, whole: steps.append((done, whole)))
    assert total == sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".json")
    assert [whole for _, whole in steps] == [total] * 3
    assert steps[-1] == (total, total)


@pytest.mark.parametrize("name", ["train-00001.bin", "train-00000.idx", "validation-00000.sums"])
def test_verifying_finds_a_flipped_byte_anywhere(folder, name):
    body = bytearray((folder / name).read_bytes())
    body[-1] ^= 1
    (folder / name).write_bytes(body)
    with pytest.raises(ValueError, match=name):
        verify_dataset(folder)
