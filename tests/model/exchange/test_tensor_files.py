"""Files of weights against the safetensors library."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from model.exchange.tensor_files import INDEX, SINGLE, TensorReader, TensorWriter

SHAPES = st.dictionaries(
    st.text("ab.c\u00e9", min_size=1, max_size=8), st.lists(st.integers(0, 7), max_size=3).map(tuple), min_size=1
)


@given(SHAPES, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.integers(1, 3000), st.randoms())
def test_what_is_written_in_any_order_is_what_the_library_reads(tmp_path_factory, shapes, dtype, file_bytes, random):
    folder = tmp_path_factory.mktemp("files")
    weights = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    writer = TensorWriter(folder, shapes, dtype, file_bytes)
    for name in random.sample(sorted(weights), len(weights)):
        writer.write(name, weights[name])
    read = {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}
    assert not writer.missing and set(read) == set(weights)
    reader = TensorReader(folder)
    for name, weight in weights.items():
        assert read[name].dtype == reader.read(name).dtype == dtype
        assert torch.equal(read[name], weight) and torch.equal(reader.read(name), weight)
    assert reader.num_bytes == sum(weight.nbytes for weight in weights.values())


def test_files_keep_their_limit_where_weights_do(tmp_path):
    shapes = {f"w{i}": (size,) for i, size in enumerate((10, 20, 100, 5, 5))}
    TensorWriter(tmp_path, shapes, torch.float32, 120)
    index = json.loads((tmp_path / INDEX).read_text())
    files = [index["weight_map"][name] for name in shapes]
    assert files == [f"model-0000{number}-of-00003.safetensors" for number in (1, 1, 2, 3, 3)]
    assert index["metadata"]["total_size"] == 560


def test_a_weight_gets_the_files_dtype_and_the_digest_of_what_is_stored(tmp_path):
    writer = TensorWriter(tmp_path, {"w": (2, 3)}, torch.bfloat16, 1000)
    assert writer.missing == {"w"}
    digest = writer.write("w", torch.randn(3, 2).t())
    assert TensorReader(tmp_path).digest("w") == digest


def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"no model\.safetensors in it"):
        TensorReader(tmp_path)
    save_file({"w": torch.zeros(1000), "n": torch.zeros(3)}, tmp_path / SINGLE)
    with pytest.raises(ValueError, match="there is no weight v in its safetensors files"):
        TensorReader(tmp_path).read("v")
    with (tmp_path / SINGLE).open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(ValueError, match="it ends inside the weight w; copy it again"):
        TensorReader(tmp_path).read("w")
    save_file({"w": torch.zeros(4, dtype=torch.int8)}, tmp_path / SINGLE)
    with pytest.raises(ValueError, match="the weight w is stored as I8; allowed are F32, BF16, F16, F64"):
        TensorReader(tmp_path)
