"""Presets: the blocks and sizes of published models under one name, to train from scratch.

configs/models/NAME.yaml -> Preset -> keys of a run's `model:` section (`preset: NAME`)
                                   -> rows of `shardline model list`, counted on a model without storage
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field
from rich.markup import escape
from rich.table import Table

import configs
from common.mistakes import Mistake, cut
from launcher.console import console
from model.config import ModelConfig

FOLDER = Path(configs.__file__).parent / "models"
HEADER = ("name", "shape", "layers", "d_model", "ours", "published", "difference", "note")


class Preset(BaseModel):
    """A published model as a file of configs/models says it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str
    """Name of the file without its ending."""
    model: ModelConfig
    """Its blocks and sizes, rows of the embedding included."""
    source: str
    """Paper with section or table, model card or config file that the figures come from."""
    published_parameters: int = Field(gt=0)
    """Number of parameters as published."""
    counts: str | None = None
    """What the published number counts or how it was rounded, where that needs saying."""
    departs: str | None = None
    """Where our model differs from the published one; empty means nowhere."""

    @property
    def note(self) -> str:
        """Everything a reader of the two counts has to know."""
        return " ".join(filter(None, (self.counts, self.departs)))


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of `shardline model list`."""

    name: str
    shape: str
    num_layers: int
    num_encoder_layers: int
    d_model: int
    parameters: int
    published_parameters: int
    difference: float
    source: str
    note: str

    @property
    def layers(self) -> str:
        """Layers as people write them: 32, or encoder + decoder as in 12+12."""
        return f"{self.num_encoder_layers}+{self.num_layers}" if self.num_encoder_layers else str(self.num_layers)


def names() -> list[str]:
    """All presets, families together."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name: str) -> Path:
    """File of a preset; raises ValueError with the nearest name if there is none."""
    known = names()
    if name in known:
        return FOLDER / f"{name}.yaml"
    nearest = difflib.get_close_matches(cut(str(name)).lower(), known, n=1, cutoff=0.4)
    hint = f"did you mean '{nearest[0]}'?" if nearest else "choose one of them"
    raise Mistake(
        f"no model preset is called '{cut(str(name))}'; {hint} (`shardline model list` shows all {len(known)})"
    )


def load(name: str) -> Preset:
    """A preset by name; raises ValueError with the nearest name if there is none."""
    return Preset.model_validate({"name": name, **_read(name)})


def keys(name: str) -> dict[str, Any]:
    """What a preset writes in the `model:` section, as plain values without defaults."""
    return _read(name)["model"]


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load(find(name).read_text(encoding="utf-8"))


def count_parameters(config: ModelConfig) -> int:
    """Trainable weights of the network itself, built on the meta device: no storage, no arithmetic.

    `config.vocab_size` must be given.
    """
    import torch

    from model.network.transformer import Transformer

    assert config.vocab_size is not None
    with torch.device("meta"):
        model = Transformer(config, config.vocab_size)
    return sum(parameter.numel() for parameter in model.parameters())


def listing() -> list[Row]:
    """All presets with ours beside the published count: families in alphabetical order, each by size."""
    presets = [load(name) for name in names()]
    presets.sort(key=lambda preset: (preset.name.rpartition("-")[0], preset.published_parameters))
    return [_row(preset) for preset in presets]


def _row(preset: Preset) -> Row:
    config, parameters = preset.model, count_parameters(preset.model)
    return Row(
        name=preset.name,
        shape=config.shape,
        num_layers=config.num_layers,
        num_encoder_layers=config.encoder_layers,
        d_model=config.d_model,
        parameters=parameters,
        published_parameters=preset.published_parameters,
        difference=parameters / preset.published_parameters - 1,
        source=preset.source,
        note=preset.note,
    )


def show(rows: list[Row]) -> None:
    """Prints the list and its notes."""
    lines, notes = as_text(rows)
    table = Table(box=None, pad_edge=False)
    for title in HEADER:
        table.add_column(title, justify="left" if title in ("name", "shape", "note") else "right", no_wrap=True)
    for cells in lines:
        table.add_row(*map(escape, cells))
    console.print(table)
    for number, note in enumerate(notes, start=1):
        console.print(escape(f"[{number}] {note}"))


def as_text(rows: list[Row]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Cells under HEADER, and the notes whose numbers (from 1) stand in the last cell."""
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    return [
        (
            row.name,
            row.shape,
            row.layers,
            str(row.d_model),
            size(row.parameters),
            size(row.published_parameters),
            f"{row.difference:+.2%}",
            f"[{notes.index(row.note) + 1}]" if row.note else "",
        )
        for row in rows
    ], notes


def as_markdown(rows: list[Row]) -> str:
    """The list as it stands in docs/models.md."""
    lines, notes = as_text(rows)
    table = [HEADER, tuple("---" for _ in HEADER), *lines]
    body = "".join(f"| {' | '.join(cells)} |\n" for cells in table)
    return body + "\n" + "".join(f"- [{number}] {note}\n" for number, note in enumerate(notes, start=1))


def describe(preset: Preset) -> str:
    """A preset as YAML that can stand in a run's config, what is known of it as comments."""
    parameters = count_parameters(preset.model)
    facts = [
        f"{preset.name}: {parameters:,} parameters, published {preset.published_parameters:,}",
        f"source: {preset.source}",
        *([f"note: {preset.note}"] if preset.note else []),
    ]
    section = {"model": preset.model.model_dump(mode="json")}
    return "".join(f"# {fact}\n" for fact in facts) + yaml.safe_dump(section, sort_keys=False)


def size(count: int) -> str:
    """A number of parameters in four digits: 124.4M, 6.738B."""
    return f"{count / 1e9:.4g}B" if count >= 1e9 else f"{count / 1e6:.4g}M"
