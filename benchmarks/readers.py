"""Do folders of ours read alike in old and new transformers? Each version in a virtual environment of its own.

    python -m benchmarks.readers [--old VERSION] [--venv DIR] [--check]

    models of every class, norms and biases random -> export -> reader.py in both -> logits, greedy tokens, ids

The environment of the old one has transformers, tokenizers and huggingface_hub of its own, and torch from here.
Bases and scalings of rotary positions are unlike any default, so that a reader that misses them shows.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.exports import randomised
from data_pipeline.config import SourceConfig, TokenizerConfig
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from model.config import ModelConfig
from model.exchange.convert import ExportSpec, TokenizerSpec, export_hf
from model.exchange.hf_configs import architecture
from model.exchange.parity import AWKWARD_TEXTS, run_ours

OLD = "4.57.6"
BESIDE = ("huggingface_hub<1", "tokenizers<0.23")
"""What the old version needs older than it is here."""
TOLERANCE = 1e-5
BASE: dict[str, Any] = {"num_layers": 2, "d_model": 48, "num_heads": 6, "num_kv_heads": 2, "d_ff": 64, "init_std": 0.15}
BASE |= {"rope_theta": 500000.0}
LLAMA3 = {"kind": "llama3", "factor": 4.0, "original_max_positions": 16}
KINDS = ["sliding_attention", "full_attention"]
MODERNBERT = {"shape": "encoder", "norm": "layernorm", "activation": "geglu_exact", "embedding_norm": True}
MODERNBERT |= {"first_attention_norm": False, "head_transform": True, "head_bias": True, "tie_embeddings": True}
MODERNBERT |= {"sliding_window": 7, "sliding_rope_theta": 3000.0, "layer_types": KINDS[::-1], "num_kv_heads": None}
LINEAR = {"rope_scaling": {"kind": "linear", "factor": 3.0}}
TIED = {"tie_embeddings": True}
CLASSIC: dict[str, Any] = {"norm": "layernorm", "bias": True, "activation": "gelu_tanh", "num_kv_heads": None}
LEARNED = CLASSIC | {"positions": "learned", "max_positions": 128}
ALIBI = CLASSIC | {"positions": "alibi", "embedding_norm": True, "d_ff": 192}
NEOX = CLASSIC | {"parallel_block": True, "parallel_norms": 2, "rope_fraction": 0.25}
PHI = CLASSIC | {"parallel_block": True, "head_bias": True, "rope_fraction": 0.5, "num_kv_heads": 2}
COHERE = {"norm": "layernorm", "parallel_block": True, "logit_scale": 0.25}
OLMO2 = {"norm_placement": "output", "qk_norm": "all_heads"}
GEMMA = {
    "norm": "rmsnorm_1p",
    "activation": "geglu",
    "embedding_scale": 48**0.5,
    "head_dim": 16,
    "tie_embeddings": True,
}
SANDWICH = GEMMA | {"norm_placement": "sandwich", "sliding_window": 6, "layer_types": KINDS}
GEMMA2 = SANDWICH | {"attention_softcap": 2.0, "attention_scale": 20**-0.5, "logit_softcap": 3.0}
GEMMA3 = SANDWICH | {"qk_norm": True, "attention_scale": 20**-0.5, "sliding_rope_theta": 3000.0}
POST = LEARNED | {"norm_placement": "post", "embedding_norm": True, "activation": "gelu"}
BERT = POST | {"shape": "encoder", "segment_embeddings": 2, "head_transform": True, "head_bias": True}
BART = POST | {"shape": "encdec", "position_offset": 2, "num_encoder_layers": 3}
UMT5 = {"shape": "encdec", "positions": "t5_bias", "t5_bias_per_layer": True, "logit_scale": 48**-0.5}
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_embeddings": True},
    "llama, biases": {"bias": True},
    "llama, scaled as Llama 3.1": {"rope_scaling": LLAMA3},
    "llama, scaled linearly": LINEAR,
    "qwen3": {"qk_norm": True},
    "qwen3, windows": {"qk_norm": True, "sliding_window": 6, "layer_types": KINDS},
    "seed_oss": {"qkv_bias": True},
    "mistral": {"sliding_window": 6},
    "smollm3": {"no_rope_layer_interval": 2},
    "gptj": {"norm": "layernorm", "bias": True, "qkv_bias": False, "attention_output_bias": False, "num_kv_heads": None}
    | {"parallel_block": True, "head_bias": True, "rope_theta": 10000.0, "rope_fraction": 0.25, "activation": "gelu"},
    "modernbert": MODERNBERT,
    "modernbert, all layers slide": MODERNBERT | {"layer_types": None},
    "modernbert, scaled linearly": MODERNBERT | LINEAR,
    "arcee": {"activation": "relu", "bias": True},
    "phi3": {"rope_fraction": 0.5},
    "phi3, tied, windows": TIED | {"rope_fraction": 0.75, "sliding_window": 6},
    "olmo2": OLMO2,
    "olmo2, tied, scaled linearly": OLMO2 | TIED | LINEAR,
    "gemma": GEMMA,
    "gemma, untied, scaled linearly": GEMMA | LINEAR | {"tie_embeddings": False},
    "gemma2": GEMMA2,
    "gemma2, untied, no window": GEMMA2 | {"tie_embeddings": False, "sliding_window": None, "layer_types": None},
    "gemma3": GEMMA3,
    "gemma3, scaled linearly": GEMMA3 | LINEAR,
    "gemma3, one base, capped": GEMMA3 | {"sliding_rope_theta": None, "logit_softcap": 3.0},
    "gpt2": LEARNED,
    "gpt2, tied": LEARNED | TIED,
    "opt": LEARNED | {"activation": "relu", "position_offset": 2},
    "opt, tied": LEARNED | TIED | {"activation": "relu", "position_offset": 2},
    "bloom": ALIBI,
    "bloom, tied": ALIBI | TIED,
    "gpt_neox": NEOX,
    "gpt_neox, in turn, tied, scaled": CLASSIC | TIED | LINEAR | {"activation": "gelu"},
    "phi": PHI,
    "phi, tied, scaled linearly": PHI | TIED | LINEAR,
    "cohere": COHERE,
    "cohere, tied, scaled linearly": COHERE | TIED | LINEAR | {"num_kv_heads": 1},
    "prefix_llama": {"shape": "prefix"},
    "prefix_decoder": LEARNED | {"shape": "prefix"},
    "eurobert": {"shape": "encoder"},
    "t5": {"shape": "encdec", "positions": "t5_bias", "rope_theta": 10000.0, "num_encoder_layers": 3},
    "t5, tied": {"shape": "encdec", "positions": "t5_bias", "rope_theta": 10000.0, "tie_embeddings": True},
    "umt5": UMT5 | {"num_encoder_layers": 3},
    "umt5, tied": UMT5 | TIED | {"activation": "geglu"},
    "bert": BERT,
    "bert, tied": BERT | TIED | {"norm_eps": 1e-12},
    "roberta": BERT | {"segment_embeddings": 1, "position_offset": 4},
    "roberta, tied": BERT | TIED | {"segment_embeddings": 1, "position_offset": 4},
    "bart": BART | {"embedding_scale": 48**0.5},
    "bart, tied": BART | TIED,
    "encdec_rope": {"shape": "encdec", "num_encoder_layers": 3},
}
OWN_CODE = ("prefix_llama", "prefix_decoder", "encdec_rope")
NEW_ALONE = (*OWN_CODE, "eurobert", "modernbert, all layers slide", "modernbert, scaled linearly")
"""Cases that version 4 has no class or no keys for, or whose modeling file wants version 5: they must be refused there.
"""
OTHERWISE = ("umt5",)
"""Cases that version 4 reads as another model: it ties the head of every UMT5 that is scaled."""
ROWS, LENGTH, OUTPUTS = 2, 24, 9


class Made(NamedTuple):
    """A folder, what is asked of it, and our own logits for that."""

    request: dict[str, Any]
    logits: torch.Tensor


def make(config: ModelConfig, folder: Path, tokenizer: Tokenizer) -> Made:
    """Exports a random model of a config and asks our own network."""
    model = randomised(config, tokenizer.vocab_size).eval()
    spec = TokenizerSpec(tokenizer.model_path)
    ids: dict[str, Any] = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    export_hf(model.state_dict(), ExportSpec(config, tokenizer.vocab_size, 128, tokenizer=spec, **ids), folder)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(4, tokenizer.vocab_size, (ROWS, LENGTH), generator=generator)
    outputs = torch.randint(4, tokenizer.vocab_size, (ROWS, OUTPUTS), generator=generator)
    asked, prefix = {"input_ids": inputs.tolist()}, 0
    if config.shape == "encdec":
        asked["decoder_input_ids"] = outputs.tolist()
    elif config.shape == "prefix":
        prefix = LENGTH // 2
        asked["prefix_lengths"] = [prefix] * ROWS
    split = {"encdec": LENGTH, "encoder": LENGTH}.get(config.shape, prefix)
    rests = outputs if config.shape == "encdec" else inputs[:, split:]
    logits = torch.stack([run_ours(model, row[:split], rest) for row, rest in zip(inputs, rests, strict=True)])
    found = architecture(config)
    request = {"folder": str(folder), "auto": found.auto, "trusted": found.shipped is not None, "inputs": asked}
    return Made(request | {"texts": AWKWARD_TEXTS, "generates": config.shape != "encoder"}, logits)


def environment(folder: Path, version: str) -> Path:
    """Python of a virtual environment with that version of transformers; behind its own it sees the packages here."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        words = ["-m", "pip", "install", "--quiet", "--no-deps", f"transformers=={version}", *BESIDE]
        subprocess.run([python, *words], check=True)
        own = next(folder.glob("lib/python*/site-packages"))
        (own / "here.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        (folder / "ready").touch()
    return python


def read(python: Path, requests: dict[str, Any], work: Path) -> dict[str, Any]:
    """What transformers of an environment answers."""
    asked, answers = work / "requests.json", work / "answers.json"
    asked.write_text(json.dumps(requests))
    # -P, or modules of this folder would stand for packages of the same name
    subprocess.run([python, "-P", Path(__file__).with_name("reader.py"), asked, answers], check=True, cwd=work)
    return json.loads(answers.read_text())


class Verdict(NamedTuple):
    """What two versions made of a folder."""

    name: str
    old: float | None
    """Largest difference from our logits, as a share of the largest; None where it could not be read."""
    new: float | None
    note: str
    holds: bool

    @property
    def line(self) -> str:
        """As a row of a table in Markdown."""
        far = ("refused" if each is None else f"{each:.1e}" for each in (self.old, self.new))
        return f"| {self.name} | {' | '.join(far)} | {self.note} |"


def compared(name: str, made: Made, old: dict[str, Any], new: dict[str, Any]) -> Verdict:
    """How far both are from ours, and whether they agree."""
    faults = [found[name]["error"] for found in (old, new) if "error" in found[name]]
    far = [None if "error" in each[name] else _distance(each[name]["logits"], made.logits) for each in (old, new)]
    differ = [key for key in ("generated", "ids") if old[name].get(key) != new[name].get(key)]
    note = f"other {' and '.join(differ)}" if differ else "equal"
    if name in NEW_ALONE:
        holds = far[0] is None and far[1] is not None and far[1] < TOLERANCE
    elif name in OTHERWISE:
        holds = far[0] is not None and far[0] > TOLERANCE and far[1] is not None and far[1] < TOLERANCE
    else:
        holds = not differ and all(each is not None and each < TOLERANCE for each in far)
    return Verdict(name, far[0], far[1], faults[0].replace("|", " ") if faults else note, holds)


def _distance(theirs: list, ours: torch.Tensor) -> float:
    return ((torch.tensor(theirs) - ours).abs().max() / ours.abs().max()).item()


def small_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer of 600 pieces, trained on some modules of the standard library."""
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(encoding="utf-8") for path in sorted(library.glob("*.py"))[:40]]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    config = TokenizerConfig(path=str(folder / "tokenizer"), vocab_size=600, training_megabytes=0.3, num_sentinels=8)
    train_tokenizer(config, [SourceConfig(path=str(corpus))])
    return Tokenizer.load(config, "off")


def main() -> int:
    """Exports every case, has both versions read it, and prints a table in Markdown."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--old", default=OLD, metavar="VERSION", help="of transformers, to read beside the one here")
    words.add_argument(
        "--venv", type=Path, metavar="DIR", help="environment of the old one, kept; else a temporary one"
    )
    words.add_argument("--only", default="", metavar="NAME", help="cases whose name begins so")
    words.add_argument("--check", action="store_true", help="exit 1 when a folder does not read alike")
    asked = words.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tokenizer = small_tokenizer(work)
        made = {
            case: make(ModelConfig(**BASE | keys), work / f"folder-{number}", tokenizer)
            for number, (case, keys) in enumerate(CASES.items())
            if case.startswith(asked.only)
        }
        requests = {case: each.request for case, each in made.items()}
        old = read(environment(asked.venv or work / "old", asked.old), requests, work)
        new = read(Path(sys.executable), requests, work)
        verdicts = [compared(case, each, old, new) for case, each in made.items()]
    print(f"| class | transformers {old['version']} | {new['version']} | tokens and ids |\n| --- | --- | --- | --- |")
    print("\n".join(verdict.line for verdict in verdicts))
    return int(asked.check and not all(verdict.holds for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
