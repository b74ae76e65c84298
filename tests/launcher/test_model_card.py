"""The card of an exported folder: what a run's files say, and no text of a user's that does anything."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import yaml

from data_pipeline.manifest import Manifest
from launcher.model_card import MOST_ROWS, Checkpoint, _source_rows, evaluations_of, render
from model.exchange.families import BY_TYPE
from tests.training.runs import tiny_config, write_dataset
from training.state.identity import RunIdentity, RunState, Saved

LLAMA, PREFIX, EUROBERT, T5 = (BY_TYPE[name].architecture for name in ("llama", "prefix_llama", "eurobert", "t5"))

HOSTILE = "a|b <script>x</script> [c](d) `e`\n---\nlicense: mit"


@pytest.fixture
def made(tmp_path):
    """A run of 20 planned steps that stands at its tenth, with metrics that go on to its twentieth."""
    config = tiny_config(write_dataset(tmp_path / "data", num_documents=60), runs_dir=str(tmp_path))
    lines = [{"step": n, "loss": 6 - n / 10, "tokens_consumed": n * 500} for n in range(1, 21)]
    lines = [line | {"tokens_per_second": 1.0, "step_seconds": 1.0} for line in lines]
    lines += [{"step": n, "evaluation": {"loss": 5.5 - n / 10, "unigram_entropy": 5.25}} for n in (10, 20)]
    config.run_dir.mkdir()
    (config.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    order = {"objective": {"name": "next_token"}, "sequence_length": 32}
    identity = RunIdentity(1, 2, "fp32", "data", "vocabulary", order, config.model.model_dump() | {"vocab_size": 307})
    state = RunState(step=10, samples_consumed=160, tokens_consumed=5000)
    return Checkpoint(config.run_dir, config, Saved(state, identity), config.model)


def front_matter(card):
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_card_says_what_the_run_says_of_this_step_and_nothing_later(made):
    front, body = front_matter(render(made, LLAMA, "apache-2.0"))
    assert front == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["shardline", "causal"],
    }
    assert "No licence was named" not in body
    assert "| tokens trained on | 5,000 |" in body
    assert "| 10 | 5,000 | 5.0000 |" in body
    assert "| 10 | 4.5000 | 5.2500 |" in body
    assert "4.0000" not in body, "the loss of step 20 is none of step 10"
    manifest = Manifest.load(made.config.data.path)
    assert f"{manifest.num_documents('train'):,} documents, {manifest.num_tokens('train'):,} tokens" in body
    assert "None was made of this checkpoint" in body
    assert body.count("training loss") == 1
    assert len([line for line in body.splitlines() if line.endswith("0 |") and line.count("|") == 4]) <= 2 * MOST_ROWS


def test_without_a_licence_or_a_dataset_it_says_so(made):
    config = made.config.model_copy(update={"data": made.config.data.model_copy(update={"path": "nowhere"})})
    front, body = front_matter(render(made._replace(config=config), LLAMA))
    assert "license" not in front
    assert "No licence was named" in body
    assert "The dataset was not at hand" in body
    with pytest.raises(ValueError, match="--license: 'MIT licence' is no identifier of the Hub's"):
        render(made, LLAMA, "MIT licence")


@pytest.mark.parametrize(
    ("found", "pipeline", "line"),
    [
        (LLAMA, "text-generation", 'AutoModelForCausalLM.from_pretrained("DIR")'),
        (PREFIX, "text-generation", 'AutoModelForCausalLM.from_pretrained("DIR", trust_remote_code=True)'),
        (EUROBERT, "fill-mask", 'AutoModelForMaskedLM.from_pretrained("DIR")'),
        (T5, "text2text-generation", 'AutoModelForSeq2SeqLM.from_pretrained("DIR")'),
    ],
)
def test_each_class_is_loaded_in_its_own_way(made, found, pipeline, line):
    front, body = front_matter(render(made, found))
    assert front["pipeline_tag"] == pipeline
    assert line in body
    assert ("modeling file of this folder" in body) == (found.shipped is not None)
    prompt = "class <mask>:" if found.fills_masks else "import "
    assert f"shardline generate DIR --prompt '{prompt}'" in body


def test_switches_of_blocks_stand_in_it_where_somebody_set_them(made):
    keys = {"norm_placement": "sandwich", "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    body = render(made._replace(model=made.model.model_copy(update=keys)), LLAMA)
    assert r'| norm\_placement | "sandwich" |' in body and r"| sliding\_window | 8 |" in body
    assert "sliding\\_window" not in render(made, LLAMA)


def test_vllm_is_named_where_its_class_has_the_head(made):
    cohere = BY_TYPE["cohere"].architecture
    assert not made.model.tie_embeddings
    assert ["vllm serve DIR" in render(made, found) for found in (LLAMA, cohere, T5)] == [True, False, False]


def test_the_last_evaluation_of_the_step_stands_in_it(made):
    lines = [
        {
            "step": step,
            "time": 1.0,
            "task": "t",
            "samples": 4,
            "num_fewshot": 0,
            "metrics": {"acc": value, "acc_stderr": 0.25},
        }
        for step, value in ((10, 0.1), (10, 0.5), (20, 0.9))
    ]
    (made.run_dir / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [line["metrics"]["acc"] for line in evaluations_of(made)] == [0.5]
    _, body = front_matter(render(made, LLAMA))
    assert "| t | 0 | 4 | acc | 0.5000 ± 0.2500 |" in body


def test_text_of_a_user_is_text(made):
    line = {"step": 10, "time": 1.0, "task": HOSTILE, "samples": 4, "num_fewshot": 0, "metrics": {HOSTILE: 0.5}}
    (made.run_dir / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    objective = {"name": HOSTILE}
    identity = made.saved.identity
    identity = dataclasses.replace(identity, order=identity.order | {"objective": objective})
    card = render(made._replace(saved=Saved(made.saved.state, identity)), LLAMA)
    assert "<script>" not in card
    assert "[c](d)" not in card
    assert "\nlicense: mit" not in card
    row = next(line for line in card.splitlines() if line.startswith("| objective"))
    assert row.replace("\\|", "").count("|") == 3


def test_tokens_of_sources_are_the_mix_counts_or_all_where_there_is_one():
    one, other = (SimpleNamespace(name=name, counts={"documents_kept": 2000}) for name in ("one", "other"))
    assert _source_rows(SimpleNamespace(sources=[one]), [], 5000) == [("one", "2,000", "0", "5,000")]
    lines = [{"sources": {"one": {"tokens": 10}}}, {"loss": 1.0}]
    both = [("one", "2,000", "0", "10"), ("other", "2,000", "0", "")]
    assert _source_rows(SimpleNamespace(sources=[one, other]), lines, 5000) == both


def test_languages_stand_in_it_where_the_data_was_filtered_for_them(made):
    tree = made.config.model_dump(mode="json")
    tree["data"]["filters"] = [{"name": "language", "keep": ["de", "en"]}]
    config = type(made.config).model_validate(tree)
    assert front_matter(render(made._replace(config=config), LLAMA))[0]["language"] == ["de", "en"]


def test_a_tokenizer_that_transformers_cannot_read_is_named_and_not_loaded(made):
    card = render(made, LLAMA, plain_tokenizer="sentencepiece.model")
    assert "sentencepiece.model" in card and "AutoModelForCausalLM" in card
    assert "AutoTokenizer" not in card and "shardline generate" not in card
