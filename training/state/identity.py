"""`state.json`: where a run stands, what a checkpoint was made by, and whether another run may go on with it.

What a checkpoint says of its run is read through today's config classes, so that a key that came later has its
default there, and a checkpoint once written stays readable.
"""

import dataclasses
import functools
import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from common.files import read_file
from common.json_lines import Form, parse_json
from common.mistakes import Mistake
from data_pipeline.config import ObjectiveConfig
from data_pipeline.manifest import comparable
from data_pipeline.reading.mix import History, from_json
from model.config import ModelConfig
from training.spikes import GuardState

STATE = "state.json"
FORMAT = 4
"""Number of the newest format; a change that an older version would misread raises it."""
WITHOUT_MIX = 3
"""That of runs without a mix of sources, which older versions read too."""


@dataclasses.dataclass(frozen=True)
class RunState:
    """Where a run stands: together with the checkpoint's tensors all that resuming needs."""

    step: int = 0
    """Optimizer steps done."""
    samples_consumed: int = 0
    """Samples trained on, over all ranks: the whole state of the data."""
    tokens_consumed: int = 0
    """Tokens trained on, padding left out."""
    guards: GuardState = dataclasses.field(default_factory=GuardState)
    """What later steps are judged by."""
    probe: str = ""
    """What came of a fixed batch when it was saved (see probe.py); empty where nobody looked."""
    mix: History = ()
    """Which mix of sources held from which sample on; empty where there was none."""


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint was made by; all but how it is cut (see `CUT`) must be the same when resuming."""

    world_size: int
    """Number of ranks that wrote it."""
    zero_stage: int
    """Their ZeRO stage."""
    precision: str
    """fp32 or bf16."""
    data: dict[str, str] | str
    """Fingerprints of the dataset by what they cover; in old checkpoints one string, that of its training tokens."""
    tokenizer: str
    """Fingerprint of the vocabulary."""
    order: dict[str, Any]
    """What decides which tokens a sample holds and which comes when: seed, sequence_length, objective, packing."""
    model: dict[str, Any]
    """Keys of the model's config that decide its weights."""
    tensor: int = 1
    """Ranks that shared each layer; old checkpoints do not say so."""
    context: int = 1
    """Ranks that shared each row."""
    optimizer: str = "adamw"
    """What changed the weights, and so what is kept of each."""


CUT = ("world_size", "zero_stage", "tensor", "context")
"""Fields of `RunIdentity` that may differ when resuming: the state is the same, only held otherwise."""

ORDER_DEFAULTS: dict[str, Any] = {"target_length": None, "packing": "windows"}
"""What a checkpoint without a key of `order` was made with; a key that is added there is added here."""

EXECUTION_KEYS = {"attention_backend", "activation_checkpointing", "activation_checkpointing_interval", "compile"} | {
    "vocab_size"
}
"""Keys of the model section that change how it runs, not what it is (the vocabulary's size is compared resolved)."""

_REMEDIES = {
    "precision": "set training.precision back, or start a new run",
    "data": "point data.path to the dataset the run began with, or start a new run",
    "tokenizer": "use the tokenizer the run began with, or start a new run",
    "order": "set seed, training.sequence_length, objective and data.packing back, or start a new run",
    "model": "set the model section back, or start a new run",
    "optimizer": "set optimizer.name back, or start a new run",
}


FORM = Form(
    {
        "state": Form(dict.fromkeys(("step", "samples_consumed", "tokens_consumed"), int)),
        "identity": Form(
            {
                **dict.fromkeys(("world_size", "zero_stage"), int),
                **dict.fromkeys(("precision", "tokenizer"), str),
                **dict.fromkeys(("order", "model"), dict),
                "data": (dict, str),
            },
            {"tensor": int, "context": int, "optimizer": str},
        ),
    }
)
"""What `state.json` holds at least; keys of `RunIdentity` that came later may be missing."""


class OtherFormat(Mistake):
    """A checkpoint that is whole for all we know, but not of a format that this version reads."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """What `state.json` says."""

    state: RunState
    """Where the run stood."""
    identity: RunIdentity
    """What the checkpoint was made by, as today's classes would say it."""


def dump_state(state: RunState, identity: RunIdentity) -> bytes:
    """`state.json` of a checkpoint that is being written."""
    where = dataclasses.asdict(state)
    facts = {
        "format": FORMAT if state.mix else WITHOUT_MIX,
        # beside the state, where versions that know nothing of them pass over them
        "guards": where.pop("guards"),
        "probe": where.pop("probe"),
        **({"mix": mix} if (mix := where.pop("mix")) else {}),
        "state": where,
        "identity": dataclasses.asdict(identity),
        "code": code_version(),
        "torch": torch.__version__,
    }
    return json.dumps(facts, indent=1).encode()


def parse_state(data: bytes, folder: Path) -> Saved:
    """What `state.json` of a checkpoint says.

    Raises OtherFormat where it is of a format that this version does not read, ValueError where it is damaged.
    """
    try:
        facts = parse_json(data)
        written = facts.get("format", 0)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{STATE} cannot be read ({error})") from None
    if written == 0 and "identity" in facts:
        raise OtherFormat(
            f"{folder}: written before checkpoints had a format of their own; convert it once with "
            f"'shardline checkpoint upgrade {folder.parent.parent} --trust', which runs the code that lies in it"
        )
    if not isinstance(written, int) or written > FORMAT:
        raise OtherFormat(
            f"{folder}: written in format {written}, and this version of shardline reads formats up to {FORMAT}; "
            "go on with the version that wrote it, or a newer one"
        )
    if fault := FORM.fault(facts):
        raise ValueError(f"{STATE} is not that of a checkpoint, for {fault}")
    try:
        guards, probe = _guards(facts.get("guards", {})), str(facts.get("probe", ""))
        state = RunState(**facts["state"], guards=guards, probe=probe, mix=from_json(facts.get("mix", [])))
        return Saved(state, _as_today(RunIdentity(**facts["identity"])))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{STATE} cannot be read ({error})") from None


def _guards(facts: dict[str, Any]) -> GuardState:
    """As they were saved: keys that came later have their defaults, those of later versions are passed over."""
    forms: dict[str, Any] = {"losses": _figures, "norms": _figures, "in_a_row": int, "jumps": int}
    return GuardState(**{key: forms[key](value) for key, value in facts.items() if key in forms})


def _figures(values: list[Any]) -> tuple[float, ...]:
    return tuple(map(float, values))


def read_saved(folder: Path) -> Saved:
    """What a checkpoint says of its run. ValueError when `state.json` is missing, broken or of another format."""
    try:
        return parse_state(read_file(folder / STATE), folder)
    except OtherFormat:
        raise
    except ValueError as error:
        raise Mistake(f"{folder}: {error}; restore this checkpoint from a copy or delete it") from None


def check_identity(then: RunIdentity, now: RunIdentity, folder: Path) -> None:
    """ValueError when the checkpoint in `folder` was made by a run that this one cannot go on with."""
    for field in dataclasses.fields(RunIdentity):
        old, new = getattr(then, field.name), getattr(now, field.name)
        if field.name == "data":
            old, new = comparable(old, new)
        if old == new or field.name in CUT:
            continue
        if isinstance(old, dict):
            key = next(key for key in {**old, **new} if old.get(key, ...) != new.get(key, ...))
            was, is_now, name = _told(old, key), _told(new, key), f"{field.name}.{key}"
        else:
            was, is_now, name = repr(old), repr(new), field.name
        raise Mistake(
            f"{folder}: the checkpoint was made with {name} {was}, this run has {is_now}; {_REMEDIES[field.name]}"
        )


def _told(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "no such key"


def _as_today(identity: RunIdentity) -> RunIdentity:
    """An identity as a run of today's version would write it: keys that came later have their defaults."""
    order = {**ORDER_DEFAULTS, **identity.order}
    if "objective" in order:
        order["objective"] = _through(ObjectiveConfig, order["objective"])
    compared = {key: value for key, value in identity.model.items() if key not in EXECUTION_KEYS}
    model = {key: value for key, value in _through(ModelConfig, compared).items() if key not in EXECUTION_KEYS}
    return dataclasses.replace(identity, order=order, model=identity.model | model)


def _through(section: type[BaseModel], saved: dict[str, Any]) -> dict[str, Any]:
    """A saved section with today's defaults for what it lacks; as it is where today's class does not take it."""
    try:
        return section.model_validate(saved).model_dump(mode="json")
    except ValidationError:
        return saved  # a key that is gone: the comparison will name it


@functools.cache
def code_version() -> str:
    """Version of this code: the package's, with the git commit where it runs from a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return f"{version('shardline')}+{commit}" if commit else version("shardline")
