"""lm-eval over models of ours: its own `hf` model gives the same numbers where it knows how to ask."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
import transformers

from launcher import evaluate, harness, text_models
from launcher.evaluate import suite
from launcher.harness import TaskResult
from model.config import ModelConfig
from model.exchange.parity import run_ours
from tests.model.exchange.exports import BASE, START, export, randomised

PAIRS = [("import os\n", "import sys"), ("def f(x): return ", "x + 1"), ("", "class A:"), ("for name in ", "names:")]
TEXT = "import collections\nimport functools\n" * 12
SHAPES = {"causal": {}, "prefix": {}, "encoder": {}, "encdec": {"positions": "t5_bias", "norm_eps": 1e-6}}
OBJECTIVES = {"causal": "next_token", "prefix": "prefix_lm", "encoder": "masked_lm", "encdec": "prefix_lm"}


def asked(method, *arguments):
    """Requests as lm-eval hands them over."""
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.fixture(scope="module")
def folders(tokenizer_config, tokenizer, tmp_path_factory):
    """An export of each shape, and the model that it is of."""
    made = {}
    for shape, keys in SHAPES.items():
        model = randomised(ModelConfig(shape=shape, **BASE, **keys), vocab_size=tokenizer.vocab_size).eval()
        out = tmp_path_factory.mktemp("exports") / shape
        export(model, out, tokenizer.model_path, objective={"name": OBJECTIVES[shape]}, max_positions=64)
        made[shape] = (out, model)
    return made


def by_hand(shape, model, context, continuation):
    """Log-likelihood of ids after ids by the pattern of the shape."""
    with torch.no_grad():
        outputs = torch.tensor(([START] if shape == "encdec" else []) + continuation)
        scores = run_ours(model, torch.tensor([START, *context]), outputs).log_softmax(-1)
    if shape == "encdec":
        return scores[: len(continuation)].gather(1, torch.tensor(continuation)[:, None]).sum().item()
    begin = len(context)
    return scores[begin : begin + len(continuation)].gather(1, torch.tensor(continuation)[:, None]).sum().item()


@pytest.mark.parametrize("shape", ["causal", "prefix", "encdec"])
def test_a_folder_is_asked_in_the_pattern_it_was_trained_in(folders, tokenizer, shape):
    where, model = folders[shape]
    found = text_models.load(where)
    adapter = harness._adapter(SimpleNamespace(api=SimpleNamespace(model=SimpleNamespace(LM=object))), found.model)
    answers = adapter.loglikelihood(asked("loglikelihood", *PAIRS[:1], PAIRS[2]))
    pairs = [(tokenizer.encode(text).tolist() for text in pair) for pair in (("import os\n", "import sys"), PAIRS[2])]
    expected = [by_hand(shape, model, *pair) for pair in pairs]
    whole, context, rest = (
        tokenizer.encode(text).tolist() for text in ("import os\nimport sys", "import os", "\nimport sys")
    )
    expected[0] = by_hand(shape, model, context, rest if shape == "encdec" else whole[len(context) :])
    assert [value for value, _ in answers] == pytest.approx(expected, rel=1e-5)
    assert (adapter.num_asked, adapter.num_cut) == (2, 0)
    (text,) = adapter.generate_until(asked("generate_until", ("import os\n", {"until": ["\n"], "max_gen_toks": 4})))
    assert "\n" not in text


def test_an_encoder_is_asked_for_pseudo_likelihoods_and_writes_nothing(folders):
    model = text_models.load(folders["encoder"][0]).model
    adapter = harness._adapter(SimpleNamespace(api=SimpleNamespace(model=SimpleNamespace(LM=object))), model)
    assert all(value < 0 for value, _ in adapter.loglikelihood(asked("loglikelihood", *PAIRS)))
    assert adapter.loglikelihood_rolling(asked("loglikelihood_rolling", (TEXT,)))[0] < 0
    with pytest.raises(ValueError, match="shape encoder fills in places"):
        adapter.generate_until(asked("generate_until", ("import", {})))


def test_sampling_is_refused_by_its_key(folders):
    model = text_models.load(folders["causal"][0]).model
    for keys in ({"do_sample": True}, {"do_sample": True, "temperature": 0.7}):
        with pytest.raises(ValueError, match=r"generation_kwargs\.do_sample: True samples"):
            harness.generated(model, [("import", keys)])
    assert harness.generated(model, [("import", {"do_sample": False, "temperature": 0.7, "max_gen_toks": 1})])


def test_an_old_transformers_finds_the_further_special_tokens_by_the_name_it_knows(folders):
    facts = json.loads((folders["causal"][0] / "tokenizer_config.json").read_text())
    assert "extra_special_tokens" not in facts, "version 4 takes no list by this name"
    assert "<mask>" in facts["additional_special_tokens"]
    assert "<mask>" in transformers.AutoTokenizer.from_pretrained(folders["causal"][0]).extra_special_tokens


def test_neither_run_nor_folder_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="neither a run nor an exported folder"):
        text_models.load(tmp_path)


def test_a_folder_that_lies_about_its_objective_is_refused(folders, tmp_path):
    where, _ = folders["causal"]
    for file in where.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    facts = json.loads((where / "shardline.json").read_text())
    (tmp_path / "shardline.json").write_text(json.dumps(facts | {"objective": {"name": "os.system"}}))
    with pytest.raises(ValueError, match=r"shardline.json: its objective is none"):
        text_models.load(tmp_path)


def test_there_is_no_other_suite():
    assert [path.rpartition("/")[2] for path in suite("small")] == [
        "last_word.yaml",
        "next_sentence.yaml",
        "texts.yaml",
    ]
    with pytest.raises(ValueError, match="--suite: large is none; there is small"):
        suite("large")


def test_results_of_a_run_are_kept_in_its_folder_and_those_of_an_export_are_not(tmp_path, capsys):
    tasks = {"a [red]task": TaskResult(4, 0, {"acc": 0.5, "acc_stderr": 0.25})}
    of_run = evaluate.Results(tmp_path, "step-10", 10, {}, tasks)
    evaluate.show(of_run)
    assert "a [red]task" in (printed := capsys.readouterr().out)
    assert "0.25" in printed
    evaluate.record(dataclasses.replace(of_run, step=None))
    assert not list(tmp_path.iterdir())
    evaluate.record(of_run, limit=4)
    line = json.loads((tmp_path / "evaluations.jsonl").read_text())
    assert (line["step"], line["task"], line["metrics"]["acc"], line["limit"]) == (10, "a [red]task", 0.5, 4)
    assert list((tmp_path / "tensorboard").iterdir())
    assert evaluate.as_values(of_run)["a [red]task"]["metrics"]["acc"] == 0.5


# ---- against lm-eval itself


@pytest.fixture(scope="module")
def stock():
    """lm-eval's `hf` over a model and a tokenizer."""
    from lm_eval.models.huggingface import HFLM

    def make(model, where, **keys):
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
        model.tie_weights = lambda *_, **__: None  # it ties the head of every T5, also where the config says not to
        return HFLM(pretrained=model, tokenizer=tokenizer, max_length=64, batch_size=2, device="cpu", **keys)

    return make


def instances(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


@pytest.mark.evaluation
@pytest.mark.parametrize("shape", ["causal", "encdec"])
def test_stock_hf_gives_our_numbers_where_it_knows_the_shape(folders, stock, shape):
    where, _ = folders[shape]
    kinds = {"causal": transformers.AutoModelForCausalLM, "encdec": transformers.AutoModelForSeq2SeqLM}
    keys = {"add_bos_token": True} | ({} if shape == "causal" else {"backend": "seq2seq"})
    theirs = stock(kinds[shape].from_pretrained(where, dtype=torch.float32), where, **keys)
    ours = harness._adapter(harness._library(), text_models.load(where).model)
    pairs = PAIRS if shape == "causal" else [pair for pair in PAIRS if pair[0]]
    expected = theirs.loglikelihood(instances("loglikelihood", *pairs))
    found = ours.loglikelihood(instances("loglikelihood", *pairs))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
    keys = {"until": ["\n"], "max_gen_toks": 8}
    prompts = [("import os", keys), ("def f(x):", keys)]
    written = ours.generate_until(instances("generate_until", *prompts))
    longer = theirs.generate_until(instances("generate_until", *prompts))
    # beside an encoder the stock model adds the context's length to max_gen_toks
    assert all(
        theirs.startswith(mine) if shape == "encdec" else theirs == mine for mine, theirs in zip(written, longer)
    )
    if shape == "causal":
        # with add_bos_token the stock model puts <s> before a text twice, and asks how likely the second one is
        theirs = stock(theirs.model, where, add_bos_token=False)
        rolling = theirs.loglikelihood_rolling(instances("loglikelihood_rolling", (TEXT,)))
        assert ours.loglikelihood_rolling(instances("loglikelihood_rolling", (TEXT,))) == pytest.approx(
            rolling, rel=1e-5
        )


@pytest.mark.evaluation
def test_stock_hf_asks_a_prefix_model_causally_where_it_is_named_a_causal_one_and_fails_where_it_is_not(folders, stock):
    where, _ = folders["prefix"]
    ours = harness._adapter(harness._library(), text_models.load(where).model)
    found = ours.loglikelihood(instances("loglikelihood", PAIRS[1]))[0][0]
    keys = json.loads((where / "config.json").read_text())
    weights = transformers.AutoModelForCausalLM.from_pretrained(where, trust_remote_code=True).state_dict()
    as_causal = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**keys, "model_type": "llama"}))
    as_causal.load_state_dict(weights)
    causally = stock(as_causal.eval(), where, add_bos_token=True).loglikelihood(instances("loglikelihood", PAIRS[1]))[
        0
    ][0]
    assert abs(found - causally) > 0.01, "other numbers, and not a word"
    named = transformers.AutoModelForCausalLM.from_pretrained(where, trust_remote_code=True, dtype=torch.float32)
    with pytest.raises(ValueError, match="must say how many tokens of each row are prefix"):
        stock(named, where, add_bos_token=True).loglikelihood(instances("loglikelihood", PAIRS[1]))


@pytest.mark.evaluation
def test_a_task_of_a_local_file_and_the_small_suite_give_their_figures(folders, tmp_path):
    model = text_models.load(folders["prefix"][0], length=512).model
    found = harness.run(model, suite("small"), limit=2)
    assert {name: result.samples for name, result in found.items()} == {
        "python_last_word": 2,
        "python_next_sentence": 2,
        "python_reference_text": 2,
    }
    assert found["python_reference_text"].metrics["bits_per_byte"] > 0
    assert found["python_next_sentence"].metrics["acc"] in (0, 0.5, 1)
    with pytest.raises(ValueError, match=r"--tasks: .*: no such file"):
        harness.run(model, [str(tmp_path / "none.yaml")])
