"""Folders that would have code run: nothing of them is, and they work with our classes or are refused in a sentence."""

import json
import pickle
import shutil

import openai
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from common.mistakes import Mistake
from launcher.evaluate import as_values, evaluate
from launcher.generate import generate
from launcher.serving.loaded import load
from launcher.serving.running import open_socket, serving
from model.config import ModelConfig
from model.exchange.importing import import_hf
from tests.model.exchange.exports import BASE, VOCAB, export, randomised
from tests.model.exchange.families import config_of


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tokenizer_model):
    """A prefix model and an encoder-decoder, both with our modeling file."""
    home = tmp_path_factory.mktemp("exported")
    return {
        shape: export(randomised(ModelConfig(**BASE | {"shape": shape})), home / shape, tokenizer_model)
        for shape in ("prefix", "encdec")
    }


def change(file, **keys):
    facts = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(facts | keys))


def in_auto_map(key):
    def plant(folder, code):
        (folder / "evil.py").write_text(code)
        facts = json.loads((folder / "config.json").read_text())
        change(folder / "config.json", auto_map=facts.get("auto_map", {}) | {key: "evil.X"})

    return plant


def in_the_shipped_file(folder, code):
    file = next(folder.glob("*.py"))
    file.write_text(code + file.read_text())


def in_the_tokenizers_auto_map(folder, code):
    (folder / "evil.py").write_text(code)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.X", "evil.X"]})


def in_the_tokenizers_class(folder, code):
    (folder / "evil.py").write_text(code)
    change(folder / "tokenizer_config.json", tokenizer_class="evil.X", trust_remote_code=True)


def in_custom_generate(folder, code):
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code + "def generate(model, **keys): return None\n")
    change(folder / "generation_config.json", custom_generate=str(folder), trust_remote_code=True)


def in_kernels_and_configs(folder, code):
    (folder / "evil.py").write_text(code)
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        change(
            folder / file,
            trust_remote_code=True,
            attn_implementation="evil/kernel",
            _attn_implementation_internal="evil/kernel",
            experts_implementation="evil/kernel",
            _name_or_path=str(folder),
            custom_pipelines={"text-generation": {"impl": "evil.X"}},
        )


def in_an_adapter_and_a_processor(folder, code):
    (folder / "evil.py").write_text(code)
    change(folder / "adapter_config.json", base_model_name_or_path=str(folder), auto_mapping={"parent_library": "evil"})
    for file in ("processor_config.json", "preprocessor_config.json"):
        change(folder / file, auto_map={"AutoProcessor": "evil.X"}, processor_class="evil.X")


def in_a_chat_template(folder, code):
    template = "{{ cycler.__init__.__globals__.os.system('touch PWNED') }}"
    (folder / "chat_template.jinja").write_text(template)
    change(folder / "tokenizer_config.json", chat_template=template)


class Pickled:
    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


def in_pickles(folder, code):
    for name in ("pytorch_model.bin", "training_args.bin", "vocab.pkl", "tf_model.h5", "flax_model.msgpack"):
        (folder / name).write_bytes(pickle.dumps(Pickled(code)))
    change(folder / "config.json", use_safetensors=False)


PLANTED = {
    "config": in_auto_map("AutoConfig"),
    "model": in_auto_map("AutoModelForCausalLM"),
    "encoder-decoder": in_auto_map("AutoModelForSeq2SeqLM"),
    "tokenizer": in_the_tokenizers_auto_map,
    "tokenizer's class": in_the_tokenizers_class,
    "generate": in_custom_generate,
    "shipped file": in_the_shipped_file,
    "kernels": in_kernels_and_configs,
    "adapter": in_an_adapter_and_a_processor,
    "chat template": in_a_chat_template,
    "pickles": in_pickles,
}


def planted_everywhere(exported, home):
    """A copy of a folder in which every place would leave a file PWNED in `home`."""
    folder = shutil.copytree(exported, home / "theirs")
    for plant in PLANTED.values():
        plant(folder, f"open({str(home / 'PWNED')!r}, 'w')\n")
    return folder


@pytest.mark.parametrize("shape", ["prefix", "encdec"])
@pytest.mark.parametrize("place", PLANTED)
def test_nothing_of_a_folder_runs_and_our_class_does_its_work(place, shape, exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(exported[shape], tmp_path / "theirs")
    PLANTED[place](folder, f"open({str(tmp_path / 'PWNED')!r}, 'w')\n")
    how = {"max_new_tokens": 4, "temperature": 0.0, "seed": 0}
    assert generate(folder, ["import os"], **how) == generate(exported[shape], ["import os"], **how)
    import_hf(folder, tmp_path / "ours")
    assert not (tmp_path / "PWNED").exists() and not list(folder.glob("**/__pycache__"))


@pytest.mark.parametrize("shape", ["prefix", "encdec"])
def test_nothing_of_a_folder_runs_where_it_is_served_and_a_chat_gets_a_sentence(shape, exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = planted_everywhere(exported[shape], tmp_path)
    with serving(load(folder), open_socket("127.0.0.1", 0), "theirs", chat=True) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        how = {"model": "theirs", "max_tokens": 4, "temperature": 0}
        answer = client.completions.create(prompt="import os", echo=shape == "prefix", **how).choices[0].text
        with pytest.raises(openai.BadRequestError, match=r"its chat template does not work \(SecurityError"):
            client.chat.completions.create(messages=[{"role": "user", "content": "x"}], **how)
    assert [answer] == generate(exported[shape], ["import os"], max_new_tokens=4, temperature=0)
    assert not (tmp_path / "PWNED").exists() and not list(folder.glob("**/__pycache__"))


@pytest.mark.parametrize("shape", ["prefix", "encdec"])
def test_nothing_of_a_folder_runs_where_it_is_evaluated(shape, exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = planted_everywhere(exported[shape], tmp_path)
    questions = tmp_path / "questions.jsonl"
    lines = [{"query": "import ", "choices": ["os", "the house"], "gold": gold} for gold in (0, 1)]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert as_values(evaluate(folder, [questions])) == as_values(evaluate(exported[shape], [questions]))
    assert not (tmp_path / "PWNED").exists() and not list(folder.glob("**/__pycache__"))


def test_a_class_of_transformers_own_runs_nothing_of_its_folder_either(tmp_path, tokenizer_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = randomised(config_of("GPT2LMHeadModel"))
    folder, how = (
        export(model, tmp_path / "theirs", tokenizer_model),
        {"max_new_tokens": 4, "temperature": 0.0, "seed": 0},
    )
    before = generate(folder, ["import os"], **how)
    for name, plant in PLANTED.items():
        if name != "shipped file":
            plant(folder, f"open({str(tmp_path / 'PWNED')!r}, 'w')\n")
    assert generate(folder, ["import os"], **how) == before
    import_hf(folder, tmp_path / "ours")
    assert not (tmp_path / "PWNED").exists() and not list(folder.glob("**/__pycache__"))


def test_weights_that_are_pickles_are_refused(exported, tmp_path):
    folder = shutil.copytree(exported["prefix"], tmp_path / "theirs")
    (folder / "model.safetensors").unlink()
    in_pickles(folder, f"open({str(tmp_path / 'PWNED')!r}, 'w')\n")
    for use in (
        lambda: import_hf(folder, tmp_path / "ours"),
        lambda: generate(folder, ["x"], max_new_tokens=1, temperature=0, seed=0),
        lambda: load(folder),
        lambda: evaluate(folder, tasks=["piqa"]),
    ):
        with pytest.raises(Mistake, match=r"no model\.safetensors in it; give a folder whose weights are safetensors"):
            use()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "model.bin", 5, None])
def test_an_index_names_files_of_its_own_folder_only(name, exported, tmp_path):
    folder = shutil.copytree(exported["prefix"], tmp_path / "theirs")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(Mistake, match=r"its weight_map does not name \*\.safetensors files of this folder"):
        import_hf(folder, tmp_path / "ours")


def test_kernels_named_by_a_config_are_not_fetched(tmp_path):
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=6
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "theirs")
    change(tmp_path / "theirs" / "config.json", attn_implementation="evil/kernel", num_key_value_heads=6)
    import_hf(tmp_path / "theirs", tmp_path / "ours")
