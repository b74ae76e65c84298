"""Every preset's blocks at a tiny size, written for Hugging Face's transformers and read back.

    python -m benchmarks.exports [--only NAME] [--check] [--json FILE] [--markdown]

For each of them a model with random weights, norms and biases included, becomes a folder (`convert`). Its rows say
- the class that it is, which transformers then loads as it is;
- the largest difference of its logits from ours, fp32;
- whether its 50 greedy tokens are ours, where the class generates;
- whether transformers stores the weights, bit for bit, that it was given (saved - loaded - saved);
- whether an import of the folder gives our weights, bit for bit, and its export the same file again.
Blocks that no class has would be refused by `convert`; the row says for which key then. `--markdown` prints the table
of docs/serving.md.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from common.mistakes import Mistake
from launcher import models
from model.config import ModelConfig
from model.exchange.convert import ExportSpec, TokenizerSpec, export_hf
from model.exchange.families import family_of
from model.exchange.importing import import_hf, imported_config, load_imported
from model.exchange.in_transformers import Documents, generate_theirs, quiet_transformers, run_model
from model.exchange.parity import run_ours
from model.exchange.their_folder import HfFolder, load_model
from model.network.transformer import Transformer

VOCAB, LENGTH, NUM_GREEDY, TOLERANCE = 200, 128, 50, 1e-5
BOS, PAD, EOS = 0, 1, 2
SIZE = {"num_layers": 2, "d_model": 32, "num_heads": 4, "d_ff": 128, "vocab_size": VOCAB, "init_std": 0.15}


@dataclasses.dataclass(frozen=True)
class Result:
    """A row."""

    presets: str
    name: str
    """Of the class, or what is refused."""
    logits: float | None = None
    """Largest difference."""
    greedy: bool | None = None
    """None where the class generates nothing."""
    stored: bool | None = None
    back: bool | None = None

    @property
    def is_exact(self) -> bool:
        """Whether nothing differs."""
        return (
            self.logits is not None and self.logits <= TOLERANCE and False not in (self.greedy, self.stored, self.back)
        )

    @property
    def cells(self) -> tuple[str, ...]:
        """As text."""
        words = {True: "yes", False: "NO", None: "-"}
        difference = "-" if self.logits is None else f"{self.logits:.1e}"
        return self.presets, self.name, difference, *(words[each] for each in (self.greedy, self.stored, self.back))


HEADER = ("presets", "class", "logits differ by", "50 greedy tokens", "saved, loaded, saved", "imported, exported")


def tiny(name: str) -> ModelConfig:
    """The blocks of a preset in a size that computes at once, with fewer key heads where it has fewer."""
    preset = models.load(name).model
    optional: dict[str, Any] = {"num_encoder_layers": 1, "head_dim": 16, "max_positions": LENGTH}
    optional |= {"sliding_window": 8, "layer_types": list(dict.fromkeys(preset.layer_types or []))}
    optional["num_kv_heads"] = 4 if preset.kv_heads == preset.num_heads else min(preset.kv_heads, 2)
    optional |= {"logit_scale": 32**-0.5, "embedding_scale": 32**0.5, "no_rope_layer_interval": 2}
    optional["rope_fraction"] = round(4 * preset.rope_fraction) / 4  # an even number of dims of 8
    neutral = dict.fromkeys(("logit_scale", "embedding_scale", "rope_fraction"), 1.0)
    there = {key: value for key, value in optional.items() if getattr(preset, key) not in (None, neutral.get(key))}
    return ModelConfig.model_validate(models.keys(name) | SIZE | there)


def randomised(config: ModelConfig, vocab_size: int = VOCAB) -> Transformer:
    """A model whose norms and biases are all different, so that mixing them up shows."""
    model, generator = Transformer(config, vocab_size), torch.Generator().manual_seed(0)
    least = -0.5 if config.norm == "rmsnorm_1p" else 0.5
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data.uniform_(least, least + 1, generator=generator)
    return model


def measure(presets: str, config: ModelConfig, work: Path) -> Result:
    """The row of one kind of blocks."""
    try:
        family = family_of(config, PAD)
    except Mistake as refusal:
        return Result(presets, f"none: {str(refusal).partition(' has no place')[0]}")
    model = randomised(config)
    folder = _export(model.config, dict(model.state_dict()), work / "hf")
    theirs = HfFolder.read(folder)
    with theirs.clean_view() as view:
        peer = load_model(theirs, view, torch.float32)
    logits, greedy = _compare(model, theirs, peer)
    peer.save_pretrained(work / "again")
    stored = _same_weights(load_file(folder / "model.safetensors"), load_file(work / "again" / "model.safetensors"))
    return Result(presets, family.architecture.name, logits, greedy, stored, _comes_back(model, folder, work))


def _export(config: ModelConfig, state: dict[str, torch.Tensor], out: Path) -> Path:
    tokenizer = out.parent / "tokenizer.model"
    tokenizer.touch()
    plain = TokenizerSpec(tokenizer, as_it_is=True)
    spec = ExportSpec(config, VOCAB, max_positions=LENGTH, bos_id=BOS, eos_id=EOS, pad_id=PAD, tokenizer=plain)
    return export_hf(state, spec, out)


def _compare(model: Transformer, theirs: HfFolder, peer: Any) -> tuple[float, bool | None]:
    shape, family = model.config.shape, theirs.config.family
    generator = torch.Generator().manual_seed(1)
    text, answer = (torch.randint(EOS + 1, VOCAB, (count,), generator=generator) for count in (23, 11))
    start = torch.tensor([BOS] * (shape == "encdec"), dtype=torch.long)
    answer = torch.cat((start, answer[:0] if shape == "encoder" else answer))
    with torch.no_grad():
        (logits,) = run_model(peer, family, Documents([text], [answer]))
        difference = (logits - run_ours(model, text, answer)).abs().max().item()
        if family.architecture.fills_masks:
            return difference, None
        (generated,) = generate_theirs(peer, family.architecture, [text], NUM_GREEDY, BOS)
    ours = run_ours(model, text, torch.cat((start, generated)))[-NUM_GREEDY - 1 : -1].argmax(-1)
    return difference, torch.equal(generated, ours)


def _comes_back(model: Transformer, folder: Path, work: Path) -> bool:
    import_hf(folder, work / "ours")
    config, _ = imported_config(work / "ours")
    weights = dict(load_imported(work / "ours"))
    again = _export(config, weights, work / "exported-again")
    files = (path / "model.safetensors" for path in (folder, again))
    return _same_weights(dict(model.named_parameters()), weights) and len({file.read_bytes() for file in files}) == 1


def _same_weights(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def kinds(only: str) -> list[tuple[str, ModelConfig]]:
    """Kinds of blocks, and the presets that have them, of those whose name begins so."""
    found: dict[str, tuple[list[str], ModelConfig]] = {}
    for name in filter(lambda name: name.startswith(only), models.names()):
        config = tiny(name)
        found.setdefault(config.model_dump_json(exclude={"rope_theta", "norm_eps"}), ([], config))[0].append(name)
    return [(_together(names), config) for names, config in found.values()]


def _together(names: list[str]) -> str:
    """Names in one cell: families by their first part, one alone by its whole name."""
    return names[0] if len(names) == 1 else ", ".join(dict.fromkeys(f"{name.rpartition('-')[0]}-*" for name in names))


def main() -> int:
    """Prints the table; 1 where something differs and `--check` is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", metavar="NAME", help="presets whose name begins so")
    parser.add_argument("--check", action="store_true", help="exit 1 when something differs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/serving.md")
    args = parser.parse_args()
    results = []
    with quiet_transformers():
        for presets, config in kinds(args.only):
            with tempfile.TemporaryDirectory(prefix="shardline-") as work:
                results.append(measure(presets, config, Path(work)))
    _show(results, args.markdown)
    if args.json:
        rows = [dataclasses.asdict(result) | {"exact": result.is_exact} for result in results]
        args.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    return int(args.check and not all(each.is_exact for each in results))


def _show(results: list[Result], as_markdown: bool) -> None:
    if as_markdown:
        for cells in (HEADER, ("---",) * len(HEADER), *(result.cells for result in results)):
            print(f"| {' | '.join(cells)} |")
        return
    table = Table(*HEADER, title="Presets in transformers", title_justify="left")
    for result in results:
        table.add_row(*result.cells)
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main())
