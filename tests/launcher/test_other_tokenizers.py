"""Somebody's model with its own tokenizer: imported, trained on with new text, and handed on."""

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data_pipeline.config import ObjectiveConfig, SourceConfig
from data_pipeline.manifest import Manifest
from data_pipeline.tokenizer import AWKWARD_STRINGS, Tokenizer
from launcher import stages, views
from launcher.console import StageProgress
from launcher.inspection import look
from launcher.run_folder import existing
from model.exchange.importing import imported_config
from tests.data_pipeline.tokenizing.made import byte_level, save
from tests.training.runs import save_config, steps_of, tiny_config, torchrun

NAMES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "tokenizer_class": "GPT2Tokenizer"}


@pytest.fixture(scope="module")
def published(tmp_path_factory, stdlib_documents):
    """A folder such as SmolLM2's: a Llama with byte-level BPE, and rows that no piece has."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=640, num_key_value_heads=2, max_position_embeddings=256, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return save(byte_level(stdlib_documents[:20], "smollm"), folder, **NAMES)


@pytest.fixture(scope="module")
def imported(published, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "weights"
    return stages.import_weights(published, out, StageProgress("importing"))


def config_of(imported, corpus_file, data):
    keys = yaml.safe_load(imported.model_file.read_text())["model"]
    made = tiny_config(
        data,
        tokenizer={"path": str(imported.tokenizer.folder)},
        model=keys,
        training={"steps": 6, "sequence_length": 64, "micro_batch_size": 4, "initial_weights": str(imported.out)},
        checkpoint={"interval_steps": 6},
        evaluation={"num_samples": 4},
    )
    sources = [SourceConfig(path=str(corpus_file))]
    return made.model_copy(update={"data": made.data.model_copy(update={"sources": sources})})


def test_an_imported_model_is_trained_on_with_its_own_tokenizer_and_handed_on(
    imported, published, corpus_file, ray_session, tmp_path
):
    assert "for data build; it has no <mask>, <cls>, <sep>, <extra_id_0>, which tokenizer.extend: true gives it" in (
        views.imported(imported)
    )
    config = config_of(imported, corpus_file, tmp_path / "data")
    stages.build_data(config, StageProgress("building"))
    manifest = Manifest.load(tmp_path / "data")
    assert (manifest.vocab_size, manifest.bos_id, manifest.eos_id, manifest.num_sentinels) == (600, 0, 0, 0)
    assert stages.build_data(config, StageProgress("building")).reused
    folder = save_config(config, tmp_path / "run")
    shown = look(tmp_path / "data", None, folder / "config.yaml", "train", 1, 64)
    assert all(sample.documents[0].text.startswith("<|endoftext|>") for sample in shown.samples[:1])

    done = torchrun(1, "-m", "tests.training.grid_ranks", str(folder))
    assert done.returncode == 0, done.stderr
    losses = [step["loss"] for step in steps_of(folder)]
    assert losses[-1] < losses[0]

    out = tmp_path / "hf"
    assert stages.convert(folder, out, StageProgress("converting")).num_texts > 0
    assert (out / "tokenizer.json").read_bytes() == (published / "tokenizer.json").read_bytes()
    assert AutoModelForCausalLM.from_pretrained(out).get_input_embeddings().num_embeddings == 640
    theirs, ours = AutoTokenizer.from_pretrained(out), Tokenizer.load(imported.tokenizer.folder)
    for text in AWKWARD_STRINGS:
        ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == ours.encode(text).tolist()
    again = stages.import_weights(out, tmp_path / "again", StageProgress("importing"))
    assert Tokenizer.load(again.tokenizer.folder).fingerprint == ours.fingerprint
    plain = tmp_path / "plain"
    stages.convert(folder, plain, StageProgress("converting"), with_tokenizer=False)
    assert (plain / "plain-tokenizer.json").exists() and not (plain / "tokenizer.json").exists()
    assert existing(folder)[1].tokenizer == config.tokenizer


def test_an_objective_that_needs_more_pieces_is_refused_before_a_dataset_is_built(imported, corpus_file, tmp_path):
    config = config_of(imported, corpus_file, tmp_path / "data")
    hides = config.model_copy(update={"objective": ObjectiveConfig(name="ul2")})
    hides = hides.model_copy(update={"model": config.model.model_copy(update={"shape": "prefix"})})
    with pytest.raises(ValueError, match=r"ul2 needs \[R\], \[S\], \[X\], .* with tokenizer\.extend: true"):
        stages.build_data(hides, StageProgress("building"))
    assert not (tmp_path / "data").exists()


def test_rows_for_pieces_that_were_added_are_drawn_and_the_others_imported(imported, tmp_path):
    from model.exchange.importing import load_imported
    from model.network.transformer import Transformer
    from training.setup import _first_weights
    from training.state.boxes import Box

    config, size = imported_config(imported.out)
    plain = dict(Transformer(config, size + 20, seed=3).named_parameters())
    with torch.device("meta"):
        model = Transformer(config, size + 20, seed=3)
    fill = _first_weights(model, str(imported.out))
    theirs = dict(load_imported(imported.out))
    for name in ("embedding.weight", "head.weight"):
        out = torch.empty((size + 20) * 32)
        fill(Box.whole(name, (size + 20, 32)), out, 0)
        out = out.view(size + 20, 32)
        assert torch.equal(out[:size], theirs[name])
        assert torch.equal(out[size:], plain[name][size:])
