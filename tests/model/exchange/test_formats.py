"""Values and headers that somebody else's folder may hold: read, or refused in one sentence, whatever they are."""

import json
import shutil
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from common.mistakes import Mistake
from launcher.generate import generate
from model.exchange.config_keys import KEYS, ROPE_KEYS
from model.exchange.families import BY_TYPE
from model.exchange.importing import import_hf
from model.exchange.tensor_files import TensorReader
from model.exchange.their_configs import TheirConfig, from_hf_config
from model.exchange.their_folder import HfFolder, correspondence

LLAMA = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4, "num_layers": 1}
FUZZ = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("theirs")
    LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(home / "llama")
    T5ForConditionalGeneration(T5Config(**T5)).save_pretrained(home / "t5")
    return {kind: home / kind for kind in ("llama", "t5")}


def facts_of(folder):
    return json.loads((folder / "config.json").read_text())


def one_sentence(refusal):
    text = str(refusal.value)
    return text.count("\n") == 0 and len(text) < 600


WRONG = {
    "text": ({"hidden_size": "64"}, r'hidden_size is "64"; it must be a whole number from 1 to'),
    "null": ({"hidden_size": None}, "hidden_size is null; it must be a whole number"),
    "negative": ({"num_hidden_layers": -1}, "num_hidden_layers is -1; it must be a whole number from 1 to 10000"),
    "huge": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; it must be"),
    "no whole number": ({"num_attention_heads": 4.5}, r"num_attention_heads is 4\.5"),
    "truth for a number": ({"vocab_size": True}, "vocab_size is true"),
    "list": ({"intermediate_size": [24]}, r"intermediate_size is \[24\]"),
    "not finite": ({"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN; it must be a number from"),
    "long text": ({"hidden_act": 5, "x": "y"}, "hidden_act is 5; it must be a name in quotes"),
    "number for truth": ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
    "rope": ({"rope_parameters": "llama3"}, 'rope_parameters is "llama3"; it must be an object'),
    "rope factor": ({"rope_scaling": {"rope_type": "linear", "factor": "4"}}, r'rope_scaling: factor is "4"'),
    "rope without factor": ({"rope_scaling": {"rope_type": "llama3"}, "rope_parameters": None}, "config.json"),
    "token": ({"pad_token_id": "0"}, r'pad_token_id is "0"; it must be a token id'),
    "token out of range": ({"pad_token_id": 60}, "pad_token_id 60 is no id of a vocabulary of vocab_size 60"),
    "heads": ({"num_attention_heads": 3}, "config.json: "),
    "key heads": ({"num_key_value_heads": 3}, "num_key_value_heads|num_kv_heads|no place here"),
    "type": ({"model_type": ["llama"]}, r'model_type \["llama"\] is none that is read here'),
    "dtype": ({"dtype": "int3"}, "dtype int3 is none that is read"),
    "layers that differ": ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types makes layers differ"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_of_a_config_is_named_in_one_sentence(case, folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "theirs")
    changes, message = WRONG[case]
    (folder / "config.json").write_text(json.dumps(facts_of(folder) | changes))
    uses = (
        lambda: import_hf(folder, tmp_path / "ours"),
        lambda: generate(folder, ["x"], max_new_tokens=1, temperature=0, seed=0),
    )
    for use in uses:
        with pytest.raises(Mistake, match=message) as refusal:
            use()
        assert one_sentence(refusal)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"vocab_size": 1' + "0" * 5000 + "}", '"x"', "\xff", "\ud800"]
)
def test_a_config_that_is_no_object_is_said_to_be_none(text, folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "theirs")
    (folder / "config.json").write_bytes(text.encode("latin-1" if text == "\xff" else "utf-8", "surrogatepass"))
    with pytest.raises(Mistake, match=r"config\.json: it (is not JSON|holds no keys)") as refusal:
        import_hf(folder, tmp_path / "ours")
    assert one_sentence(refusal)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        ["silu", "gelu", "relu", "gated-gelu", "default", "linear", "llama3", "yarn", "float32", 0, 1, 16]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(ROPE_KEYS)), inner, max_size=4),
    max_leaves=6,
)
CHANGED = ["model_type", "quantization_config", "layer_types", "per_layer_config", "architectures", "auto_map"]
CHANGED += ["sliding_window", "attention_dropout", "return_dict", "id2label", "problem_type", "is_decoder"]
CHANGES = st.dictionaries(st.sampled_from(sorted(KEYS) + CHANGED), ANYTHING, min_size=1, max_size=3)


@FUZZ
@given(kind=st.sampled_from(sorted(BY_TYPE)), changes=CHANGES)
def test_whatever_a_config_holds_is_understood_or_a_mistake(kind, changes, folders):
    try:
        base = facts_of(folders["t5" if kind == "t5" else "llama"]) | {"model_type": kind}
        facts = json.loads(json.dumps(base | changes))
        from_hf_config(TheirConfig.of(facts))
    except Mistake as refusal:
        assert "\n" not in str(refusal)


def header_of(file):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(file, header, data):
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def lie(**changes):
    def spoil(file):
        header, data = header_of(file)
        name = next(name for name in header if name != "__metadata__")
        write_header(file, header | {name: header[name] | changes}, data)

    return spoil


def swapped(file):
    header, data = header_of(file)
    first, second = [name for name in header if name != "__metadata__"][:2]
    header[first]["data_offsets"], header[second]["data_offsets"] = [0, 4], [2, 6]
    write_header(file, header, data)


DAMAGED = {
    "cut in its length": (lambda file: file.write_bytes(file.read_bytes()[:5]), "its header is cut short"),
    "cut in its header": (lambda file: file.write_bytes(file.read_bytes()[:100]), "its header is cut short"),
    "length of 10^10": (
        lambda file: file.write_bytes(struct.pack("<Q", 10**10) + file.read_bytes()[8:]),
        "its header is cut short",
    ),
    "no json": (lambda file: file.write_bytes(struct.pack("<Q", 4) + b"{{{{" + b"0" * 99), "it is not JSON"),
    "empty": (lambda file: file.write_bytes(b""), "its header is cut short"),
    "cut in its weights": (lambda file: file.write_bytes(file.read_bytes()[:-9]), "it ends inside the weight"),
    "more behind": (lambda file: file.write_bytes(file.read_bytes() + b"0" * 9), "9 bytes behind its last weight"),
    "shape": (lie(shape=[10**9, 10**9]), "its shape .* make it"),
    "no shape": (lie(shape="4"), "its header does not say where the weight"),
    "a negative shape": (lie(shape=[-1]), "its header does not say where the weight"),
    "offsets": (lie(data_offsets=[10, 5]), "its shape"),
    "huge offsets": (lie(data_offsets=[0, 10**30]), "its header does not say where"),
    "dtype": (lie(dtype="F64"), "dtype F64 make it"),
    "unknown dtype": (lie(dtype=["F32"]), r'is stored as \["F32"\]; allowed are F32'),
    "overlapping": (swapped, "config|its shape|does not begin"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_files_of_weights_whose_headers_lie_are_refused_in_one_sentence(case, folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "theirs")
    spoil, message = DAMAGED[case]
    spoil(folder / "model.safetensors")
    for use in (
        lambda: import_hf(folder, tmp_path / "ours"),
        lambda: generate(folder, ["x"], max_new_tokens=1, temperature=0, seed=0),
    ):
        with pytest.raises(Mistake, match=message) as refusal:
            use()
        assert one_sentence(refusal)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@FUZZ
@given(data=st.data())
def test_any_flipped_or_missing_bytes_of_a_header_are_harmless_or_a_mistake(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flipped")
    file = folder / "model.safetensors"
    save_file({"a.weight": torch.zeros(3, 2), "b": torch.zeros(4, dtype=torch.bfloat16)}, file, {"format": "pt"})
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.none() | st.integers(0, len(content)))
    file.write_bytes(content if cut is None else content[:cut])
    try:
        reader = TensorReader(folder)
        assert all(reader.read(name).shape == place.shape for name, place in reader.places.items())
    except Mistake as refusal:
        assert "\n" not in str(refusal)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@FUZZ
@given(data=st.data())
def test_any_flipped_byte_of_a_folders_header_is_harmless_or_a_mistake_before_its_weights_are_loaded(
    kind, data, folders, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("flipped")
    shutil.copyfile(folders[kind] / "config.json", folder / "config.json")
    content = bytearray((folders[kind] / "model.safetensors").read_bytes())
    length = int.from_bytes(content[:8], "little")
    content[data.draw(st.integers(0, 8 + length - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "model.safetensors").write_bytes(content)
    try:
        correspondence(HfFolder.read(folder))
    except Mistake as refusal:
        assert "\n" not in str(refusal)


INDEXES = ["", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {}}', '{"weight_map": {"w": ["a"]}}', "{" * 10_000]


@pytest.mark.parametrize("text", INDEXES)
def test_an_index_that_names_no_files_is_refused(text, folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "theirs")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(Mistake, match=r"index\.json: (it is not JSON|it holds no keys|its weight_map)") as refusal:
        import_hf(folder, tmp_path / "ours")
    assert one_sentence(refusal)


def test_an_index_that_names_a_missing_file_says_which(folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "theirs")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "more.safetensors"}}')
    with pytest.raises(Mistake, match=r"it names more\.safetensors, which is not there"):
        import_hf(folder, tmp_path / "ours")


def test_weights_that_are_not_numbers_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "theirs")
    model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    model.model.norm.weight.data[3] = torch.nan
    model.save_pretrained(folder)
    with pytest.raises(Mistake, match="its weights give logits that are not finite; nothing was imported"):
        import_hf(folder, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
