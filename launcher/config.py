"""Config files: YAML plus `--set key=value`, checked into a `RunConfig`.

Whatever is wrong with one becomes a single sentence: the file, the key, what was found and what is allowed.
"""

import difflib
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from common.files import read_file, write_whole
from common.mistakes import Mistake, cut, shown
from common.plain_yaml import read_plain
from launcher import models, places
from training.config import RunConfig

Checked = typing.TypeVar("Checked", bound=BaseModel)


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """Reads a config file, applies overrides such as `training.steps=100` and checks the whole.

    Raises ValueError with one sentence for anything a user can get wrong.
    """
    path = Path(path)
    tree = read_yaml(path, any_base=False)
    if base := places.base_of(path, tree):
        tree = places.anchored({"runs_dir": RunConfig.model_fields["runs_dir"].default, **tree}, base)
    for override in overrides:
        apply_override(tree, override)
    return check_config(tree, str(path))


def load_to_start(path: str | Path, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """The same for a run that is to begin or go on: a config in the folder of another run than it says is refused."""
    config = load_config(path, overrides)
    places.refuse_misplaced(Path(path), load_config(path).run_dir, config.run_dir)
    return config


def anchored(config: RunConfig) -> RunConfig:
    """The config with paths that mean the same from everywhere."""
    return check_config(places.anchored(config.model_dump(mode="json"), Path.cwd()), "config")


def check_config(tree: dict[str, Any], where: str) -> RunConfig:
    """The typed config of a tree of plain values; `where` names its file in errors."""
    return validated(RunConfig, _with_preset(tree, where), where)


def validated(model: type[Checked], tree: dict[str, Any], where: str) -> Checked:
    """`tree` as a typed value of this model. Raises ValueError, one sentence that names `where` and the key."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise Mistake(f"{where}: {_describe(error, model)}") from None


def json_schema() -> dict[str, Any]:
    """JSON schema of config files: of `RunConfig`, and `model.preset`, which checked configs no longer have."""
    schema = RunConfig.model_json_schema()
    model = schema["$defs"]["ModelConfig"]
    preset = {"type": "string", "enum": models.names(), "description": "Published model whose keys are meant here."}
    model["properties"] = {"preset": preset, **model["properties"]}
    model["anyOf"] = [{"required": ["preset"]}, {"required": model.pop("required")}]
    return schema


def _with_preset(tree: dict[str, Any], where: str) -> dict[str, Any]:
    """The tree with the keys of `model.preset` in its place; keys that stand beside it win."""
    section = tree.get("model")
    if not isinstance(section, dict) or "preset" not in section:
        return tree
    given = {key: value for key, value in section.items() if key != "preset"}
    try:
        preset = models.keys(section["preset"])
    except ValueError as error:
        raise Mistake(f"{where}: model.preset: {error}") from None
    return {**tree, "model": _merged(preset, given)}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merged(below[key], value) if both else value
    return merged


def save_config(config: RunConfig, path: Path) -> None:
    """Writes the resolved config, every default filled in, as YAML that `load_config` reads back equal."""
    write_whole(path, to_yaml(config).encode())


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML, keys in the order of the documentation."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets one `a.b.c=value` in a tree of plain values; the value is read as YAML, list items by their number."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise Mistake(f"--set {cut(override)}: expected key=value, for example --set training.steps=100")
    try:
        value = read_plain(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None)
        why = f" ({cut(problem)})" if problem else ""
        raise Mistake(
            f"--set {cut(override)}: the value is not valid YAML{why}; quote it, for example {cut(key)}='text'"
        ) from None
    *parents, last = key.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        node = _child(node, part, ".".join(parents[: depth + 1]), override)
    if isinstance(node, list):
        node[_list_index(node, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, part: str, where: str, override: str) -> Any:
    if isinstance(node, list):
        child = node[_list_index(node, part, override)]
    else:
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
    if not isinstance(child, dict | list):
        raise Mistake(
            f"--set {cut(override)}: {cut(where)} is the value {shown(child)}, not a section with keys of its own"
        )
    return child


def _list_index(node: list, part: str, override: str) -> int:
    if not part.isdecimal() or len(part) > 9 or int(part) >= len(node):
        items = f"it has items 0 to {len(node) - 1}" if node else "it is empty"
        raise Mistake(f"--set {cut(override)}: '{cut(part)}' is not an item of that list; {items}")
    return int(part)


def read_yaml(path: Path, *, any_base: bool = True) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ValueError, one sentence, where there is none.

    any_base: numbers such as 0123 and 24:00:00 are read, for keys that say better what is wrong with them.
    """
    try:
        text = read_file(path).decode()
    except FileNotFoundError:
        folder = path.parent
        names = [p.name for p in folder.glob("*.yaml")] if folder.is_dir() else []
        nearest = difflib.get_close_matches(path.name, names, n=1)
        hint = f"did you mean {folder / nearest[0]}?" if nearest else "check the path"
        raise Mistake(f"{path}: no such config file; {hint}") from None
    except IsADirectoryError as error:
        raise Mistake(f"{path}: {error.strerror}; name a YAML file") from None
    except UnicodeDecodeError as error:
        raise Mistake(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    try:
        tree = read_plain(text, any_base=any_base)
    except yaml.YAMLError as error:
        raise Mistake(f"{path}: {_yaml_problem(error)}") from None
    if not isinstance(tree, dict):
        raise Mistake(f"{path}: expected a mapping of sections (tokenizer:, data:, model:, training: ...)")
    return tree


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}; the file is not valid YAML"
    return f"not valid YAML ({cut(' '.join(str(error).split()), 200)})"


def _describe(error: ValidationError, model: type[BaseModel]) -> str:
    details = error.errors()
    # An unknown key explains the others (a mistyped required key is also reported as missing), so it comes first.
    first = min(details, key=lambda item: item["type"] != "extra_forbidden")
    more = f" ({len(details) - 1} more after it)" if len(details) > 1 else ""
    return _describe_one(first, model) + more


def _describe_one(item: ErrorDetails, model: type[BaseModel]) -> str:
    key = _key(_walk(model, item["loc"])[0])
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        valid = _valid_names(model, item["loc"][:-1])
        nearest = difflib.get_close_matches(cut(str(item["loc"][-1])), valid, n=1, cutoff=0.5)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"valid keys here are {', '.join(valid)}"
        return f"{key}: unknown key; {hint}"
    if kind == "missing":
        return f"{key}: this key is required and was not given"
    if kind == "literal_error":
        expected = context["expected"].replace("'", "").split()
        nearest = difflib.get_close_matches(shown(item["input"]).strip("'"), expected, n=1)
        hint = f"; did you mean '{nearest[0].strip(',')}'?" if nearest else ""
        return f"{key}: found {shown(item['input'])}; allowed: {context['expected']}{hint}"
    if kind == "value_error":
        return f"{key}.{context['error']}" if key else str(context["error"])
    if kind == "model_type":
        return f"{key}: found {shown(item['input'])}; expected keys and values, such as {{KEY: VALUE}}"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{key}: found {shown(item['input'])}; {message}"


def _key(location: tuple[int | str, ...]) -> str:
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{cut(part)}" if key else cut(part)
    return key


def _valid_names(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the keys that may stand at a location of a model."""
    (section,) = _walk(model, location)[1]
    return [*section.model_fields, *(["preset"] if location == ("model",) else [])]


def _walk(
    model: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[tuple[int | str, ...], list[type[BaseModel]]]:
    """The keys of a location, and the sections that may stand there.

    Where there are several kinds of section, pydantic puts the name of the one that was meant in between.
    """
    keys: list[int | str] = []
    sections = [model]
    for part in location:
        named = [section for section in sections if "name" in section.model_fields and _name_of(section) == part]
        if len(sections) > 1 and named:
            sections = named
            continue
        keys.append(part)
        if isinstance(part, str):
            fields = [section.model_fields[part] for section in sections if part in section.model_fields]
            sections = [section for field in fields for section in _sections_in(field.annotation)]
    return tuple(keys), sections


def _name_of(section: type[BaseModel]) -> Any:
    return section.model_fields["name"].default


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in typing.get_args(annotation) for section in _sections_in(argument)]
