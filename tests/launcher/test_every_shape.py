"""From a run of each shape to what is served: convert, generate, evaluate, import, and a run that goes on from that."""

import json
import shutil

import pytest

from common.mistakes import Mistake
from data_pipeline.config import SourceConfig, TokenizerConfig
from data_pipeline.manifest import Manifest
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from data_pipeline.tokenizing.sentence_pieces import SentencePieceTokenizer
from launcher import views
from launcher.console import StageProgress
from launcher.evaluate import evaluate
from launcher.generate import generate
from launcher.gguf import convert_to_gguf
from launcher.run_folder import existing
from launcher.stages import convert
from model.exchange.gguf.file import GgufFile
from model.exchange.importing import import_hf
from tests.training.runs import save_config, steps_of, tiny_config, torchrun

OBJECTIVES = {"causal": "next_token", "prefix": "prefix_lm", "encoder": "masked_lm", "encdec": "span_corruption"}
STEPS = 4


def config_of(real_dataset, tokenizer_config, shape: str, **training):
    return tiny_config(
        real_dataset,
        tokenizer=tokenizer_config.model_dump(),
        model={"shape": shape},
        objective={"name": OBJECTIVES[shape]},
        training={"steps": STEPS, "sequence_length": 64, "micro_batch_size": 4, **training},
        checkpoint={"interval_steps": STEPS},
        evaluation={"num_samples": 4},
    )


@pytest.fixture(scope="module")
def runs(real_dataset, tokenizer_config, tmp_path_factory):
    """A run folder of each shape, trained some steps."""
    home = tmp_path_factory.mktemp("runs")
    folders = {
        shape: save_config(config_of(real_dataset, tokenizer_config, shape), home / shape) for shape in OBJECTIVES
    }
    done = torchrun(1, "-m", "tests.training.grid_ranks", *map(str, folders.values()))
    assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.parametrize("shape", OBJECTIVES)
def test_a_run_is_converted_speaks_is_examined_and_taken_up_again(
    runs, shape, real_dataset, tokenizer_config, tmp_path
):
    served = tmp_path / "served"
    assert convert(runs[shape], served, StageProgress("converting")).num_texts > 0

    prompt = "import <mask> as os" if shape == "encoder" else "import os"
    (text,) = generate(served, [prompt], max_new_tokens=4, temperature=0.0, seed=0)
    assert text

    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"query": "import", "choices": [" sys", " banana split"], "gold": 0}) + "\n")
    result = evaluate(runs[shape], [task]).questions[str(task)]
    assert (result.questions, result.chance) == (1, 0.5)
    assert result.accuracy in (0, 1)
    assert evaluate(served, [task]).questions[str(task)] == result, "a folder is asked as its run is"

    imported = tmp_path / "imported"
    import_hf(served, imported)
    goes_on = config_of(real_dataset, tokenizer_config, shape, initial_weights=str(imported))
    vocab_size = Manifest.load(real_dataset).vocab_size
    goes_on = goes_on.model_copy(update={"model": goes_on.model.model_copy(update={"vocab_size": vocab_size})})
    folder = save_config(goes_on, tmp_path / "goes-on")
    done = torchrun(1, "-m", "tests.training.grid_ranks", str(folder))
    assert done.returncode == 0, done.stderr
    evaluated = json.loads((runs[shape] / "metrics.jsonl").read_text().splitlines()[-1])["evaluation"]["loss"]
    first, fresh = (steps_of(where)[0]["loss"] for where in (folder, runs[shape]))
    assert abs(first - evaluated) < abs(first - fresh), "it begins where the other run ended, not anew"


@pytest.mark.parametrize("shape", ["causal", "prefix", "encoder"])
def test_a_run_is_converted_to_a_file_for_llama_cpp(runs, shape, tmp_path):
    out = tmp_path / "model.gguf"
    made = convert_to_gguf(runs[shape], out, "f16", StageProgress("converting"))
    assert (made.reused, bool(made.notes)) == (False, shape != "causal")
    assert views.gguf_conversion(made).startswith(f"step-0000000{STEPS} in {out}: checked by ")
    _, config = existing(runs[shape])
    keys, tokenizer = GgufFile(out).keys, Tokenizer.load(config.tokenizer.path)
    names = keys["tokenizer.ggml.tokens"]
    assert [names[tokenizer.special_id(name)] for name in tokenizer.names] == tokenizer.names
    assert (keys["shardline.shape"], len(names)) == (shape, tokenizer.vocab_size)
    assert convert_to_gguf(runs[shape], out, "f16", StageProgress("converting")).reused


def test_a_tokenizer_without_a_form_of_hugging_face_s_is_refused_only_where_that_is_written(
    runs, tmp_path, monkeypatch
):
    def none_fits(_):
        raise Mistake("has no form in Hugging Face's format")

    monkeypatch.setattr(SentencePieceTokenizer, "hugging_face_files", none_fits)
    progress = StageProgress("converting")
    with pytest.raises(Mistake, match="has no form"):
        convert(runs["causal"], tmp_path / "hf", progress)
    assert convert(runs["causal"], tmp_path / "hf", progress, with_tokenizer=False).plain_tokenizer
    convert_to_gguf(runs["causal"], tmp_path / "model.gguf", "f32", progress)
    assert GgufFile(tmp_path / "model.gguf").keys["tokenizer.ggml.model"] == "llama"


def test_a_run_without_a_place_in_gguf_writes_nothing(runs, tmp_path):
    with pytest.raises(Mistake, match=r"model\.positions: rope has no place in GGUF's architecture t5"):
        convert_to_gguf(runs["encdec"], tmp_path / "model.gguf", "f32", StageProgress("converting"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["flash", "varlen"])
def test_a_run_that_pins_a_kernel_of_other_devices_is_examined_as_if_it_pinned_none(runs, backend, tmp_path):
    run = shutil.copytree(runs["causal"], tmp_path / "run")
    _, config = existing(run)
    save_config(
        config.model_copy(update={"model": config.model.model_copy(update={"attention_backend": backend})}), run
    )
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"query": "import", "choices": [" sys", " banana split"], "gold": 0}) + "\n")
    assert evaluate(run, [task]).questions == evaluate(runs["causal"], [task]).questions


def test_a_tokenizer_other_than_that_of_the_training_is_refused(runs, corpus_file, tmp_path):
    other = TokenizerConfig(path=str(tmp_path / "tokenizer"), vocab_size=500, training_megabytes=0.1, num_sentinels=4)
    train_tokenizer(other, [SourceConfig(path=str(corpus_file))])
    run = shutil.copytree(runs["causal"], tmp_path / "run")
    _, config = existing(run)
    save_config(config.model_copy(update={"tokenizer": other}), run)
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"query": "import", "choices": [" sys", " os"], "gold": 0}) + "\n")
    for use in (lambda: evaluate(run, [task]), lambda: convert(run, tmp_path / "served", StageProgress("converting"))):
        with pytest.raises(ValueError, match=r"tokenizer\.path: .* is not the tokenizer .* was trained with"):
            use()
