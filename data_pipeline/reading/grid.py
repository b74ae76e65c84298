"""Which objective means what for which shape of model: the grid of arXiv 2204.05832, and its refusals.

check_pair(config, shape)                    as soon as a config is read
objective_for(config, shape, vocabulary)     as soon as there is a dataset
markdown_table()                             for the documentation
"""

from collections.abc import Sequence

from common.mistakes import Mistake
from data_pipeline.config import ObjectiveConfig
from data_pipeline.reading.objectives import Objective, made_from
from data_pipeline.vocabulary import Vocabulary

SHAPES = ("causal", "prefix", "encoder", "encdec")
OBJECTIVES = (
    "next_token",
    "prefix_lm",
    "span_corruption",
    "ul2",
    "blank_infilling",
    "masked_lm",
    "sentence_pairs",
    "mixture",
)

_DENOISING = {
    "causal": "{inputs}, then {targets}, both left to right; the loss is on the latter",
    "prefix": "{inputs} read both ways, then {targets} left to right",
    "encdec": "the encoder reads {inputs}, the decoder writes {targets}",
}
_WORDS = {
    "prefix_lm": ("the head of a document", "its tail"),
    "span_corruption": ("the text with a sentinel for each hidden span", "the spans"),
    "ul2": ("a mode token and the text with sentinels", "the spans or the tail"),
    "blank_infilling": ("the text with blanks", "the blanks in shuffled order"),
}
MEANINGS: dict[tuple[str, str], str] = {
    ("next_token", "causal"): "every token from those before it",
    ("next_token", "prefix"): "as a part of a mixture with an objective that has inputs: a document without a prefix",
    **{
        (name, shape): text.format(inputs=inputs, targets=targets)
        for name, (inputs, targets) in _WORDS.items()
        for shape, text in _DENOISING.items()
    },
    ("masked_lm", "encoder"): "the masked tokens, each at its own place",
    ("sentence_pairs", "encoder"): "the masked tokens of two texts, and at [CLS] whether the second follows the first",
    **{("mixture", shape): "each document gets one of the parts, all of which must fit the shape" for shape in SHAPES},
}
"""What is read and what is predicted, for the pairs that mean something."""

_ALIGNED = "its targets stand where the inputs are, and {shape} models predict what comes after"
_WHY_NOT = {
    ("next_token", "encoder"): "an encoder sees the token it would have to predict",
    ("next_token", "encdec"): "it has no inputs, so that the encoder would read nothing",
    **{(name, "encoder"): "an encoder writes nothing, it only fills in places of its inputs" for name in _WORDS},
    **{
        (name, shape): _ALIGNED.format(shape=shape)
        for name in ("masked_lm", "sentence_pairs")
        for shape in SHAPES
        if shape != "encoder"
    },
}
"""Why the others mean nothing."""


def valid_objectives(shape: str) -> list[str]:
    """Objectives that a model of this shape can be trained on alone, and `mixture`."""
    return [name for name in OBJECTIVES if (name, shape) in MEANINGS and (name, shape) != ("next_token", "prefix")]


def valid_shapes(name: str) -> list[str]:
    """Shapes that an objective means something for by itself."""
    return [shape for shape in SHAPES if name in valid_objectives(shape)]


def check_pair(config: ObjectiveConfig, shape: str, key: str = "objective") -> None:
    """Raises ValueError, naming what would work, if the objective at a key means nothing for a model of this shape."""
    _check_names(config, shape, key)
    names: set[str] = {part.name for part in config.parts} if config.parts else {config.name}
    if shape == "prefix" and names == {"next_token"}:
        others = ", ".join(name for name in valid_objectives("prefix") if name != "mixture")
        raise Mistake(
            f"{key}.name: next_token alone means nothing for a prefix model, which would never see a prefix; "
            f"mix it with one of {others}, or use model.shape causal"
        )


def _check_names(config: ObjectiveConfig, shape: str, key: str) -> None:
    for number, part in enumerate(config.parts or []):
        _check_name(part.name, shape, f"{key}.parts[{number}].name")
    _check_name(config.name, shape, f"{key}.name")


def _check_name(name: str, shape: str, key: str) -> None:
    if (name, shape) in MEANINGS:
        return
    raise Mistake(
        f"{key}: {name} means nothing for {'an' if shape[0] == 'e' else 'a'} {shape} model: {_WHY_NOT[name, shape]}; "
        f"use {', '.join(valid_objectives(shape))} with it, or model.shape {' or '.join(valid_shapes(name))}"
    )


def objective_for(
    config: ObjectiveConfig, shape: str, vocabulary: Vocabulary, sources: Sequence[str] = ()
) -> Objective:
    """The objective a config names; ValueError if it means nothing for this shape or the tokenizer lacks a piece.

    A prefix model may be asked for next_token here, as a part of a mixture that is looked at by itself.
    """
    _check_names(config, shape, "objective")
    return made_from(config, vocabulary, sources)


def markdown_table() -> str:
    """The grid as a table in Markdown: what each objective asks of each shape, or why it is refused."""
    lines = ["| objective | " + " | ".join(SHAPES) + " |", "|---" * (len(SHAPES) + 1) + "|"]
    for name in OBJECTIVES:
        cells = [MEANINGS.get((name, shape)) or f"- ({_WHY_NOT[name, shape]})" for shape in SHAPES]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
