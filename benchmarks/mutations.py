"""Ways to spoil a file: pure functions of its bytes and a generator of random numbers, and what may lie in its place.

    bytes of a valid file, form -> mutated -> other bytes, or something that is no file; and what was done, in words

A form says what may be spoilt besides bytes: `json` and `yaml` are trees whose keys and values are exchanged, `lines`
are lines of JSON each of which is such a tree. The same numbers always spoil a file in the same way.
"""

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Put = Callable[[Path], None]
Raw = Callable[[bytes, random.Random], bytes]

NAMES = (
    "../../../etc/passwd",
    "..",
    ".",
    "/",
    "",
    "a\0b",
    "\ud800",
    "a" * 4000,
    "$(touch CANARY)",
    "'; touch CANARY #",
    "\n#SBATCH --wrap=x\n",
    "\x1b[31mred",
    "[/]",
    "[bold]x",
    "{{ 7 * 7 }}",
    "%s%n",
    "step-99999999",
    "train-00000",
    "~nobody-of-this-name/x",
    "nan",
    "1e999",
    "\u6a21\u578b \U0001f999",
)
"""Texts that mean something to a shell, a path, a terminal, a template or a parser of numbers."""

_DEEP = "[" * 3000 + "]" * 3000
VALUES = (
    *("null", "true", "false", "0", "-1", "1", "-0.0", "0.5", "1e308", "-1e308", "1e999", "5e-324"),
    *("NaN", "Infinity", "-Infinity", ".nan", ".inf", str(2**31), str(2**63), str(2**64), str(-(2**63) - 1)),
    *(
        "9" * 40,
        "9" * 5000,
        "[]",
        "{}",
        "[[]]",
        "{a: {}}",
        '{"": ""}',
        '"x"',
        '""',
        "[0, 1]",
        _DEEP,
        "{a: " * 60 + "}" * 60,
    ),
    *(json.dumps(name) for name in NAMES),
)
"""Values to stand anywhere, as they are written in JSON or in a line of YAML."""


class Mutation(NamedTuple):
    """A file that is not what it was."""

    words: str
    """What was done to it."""
    put: Put
    """Puts it where the valid one lies."""


def mutated(data: bytes, form: str, rng: random.Random) -> Mutation:
    """A mutation of a file of this form: `json`, `yaml`, `lines` or `binary`."""
    kind = rng.random()
    if kind < 0.12:
        name = rng.choice(list(PLACES))
        return Mutation(f"{name} in its place", PLACES[name])
    if kind < 0.5 or form == "binary":
        words, spoilt = _raw(data, rng)
    else:
        words, spoilt = FORMS[form](data, rng)
    return Mutation(words, lambda path: _write(path, spoilt))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _raw(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One or two changes of bytes, without regard to what they mean."""
    names = [rng.choice(list(RAW)) for _ in range(rng.choice((1, 1, 2)))]
    for name in names:
        data = RAW[name](data, rng)
    return " and ".join(names), data


def _cut(data: bytes, rng: random.Random) -> tuple[int, int]:
    """A short range of bytes."""
    first = rng.randrange(len(data) + 1)
    return first, min(len(data), first + rng.choice((1, 2, 8, 64, 512)))


def _flipped(data: bytes, rng: random.Random) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        if spoilt:
            # the first bytes of a file say what the others are
            at = rng.randrange(min(len(spoilt), 48) if rng.random() < 0.3 else len(spoilt))
            spoilt[at] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def _truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((rng.randrange(len(data) + 1), max(0, len(data) - rng.randrange(1, 10))))]


def _with_slice_gone(data: bytes, rng: random.Random) -> bytes:
    first, last = _cut(data, rng)
    return data[:first] + data[last:]


def _with_slice_twice(data: bytes, rng: random.Random) -> bytes:
    first, last = _cut(data, rng)
    return data[:last] + data[first:last] + data[last:]


def _with_noise(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 4, 40))) + data[at:]


def _with(noise: bytes) -> Raw:
    """Bytes put in somewhere, instead of what was there or before it."""

    def change(data: bytes, rng: random.Random) -> bytes:
        at = rng.randrange(len(data) + 1)
        return data[:at] + noise + data[at + rng.choice((0, len(noise))) :]

    return change


RAW: dict[str, Raw] = {
    "bits flipped": _flipped,
    "truncated": _truncated,
    "emptied": lambda data, rng: b"",
    "twice": lambda data, rng: data + data,
    "a slice left out": _with_slice_gone,
    "a slice doubled": _with_slice_twice,
    "noise put in": _with_noise,
    "no UTF-8": _with(b"\xff\xfe\xc0\x80"),
    "NUL bytes": _with(b"\0" * 16),
    "line ends": _with(b"\r\n\n"),
    "brackets": _with(b"[[{{"),
    "a byte order mark": lambda data, rng: b"\xef\xbb\xbf" + data,
    "zeros for its end": lambda data, rng: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
}


def _as_json(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    words, tree, text = _spoilt(json.loads(data), rng)
    return words, json.dumps(tree).replace(json.dumps(MARK), text).encode(errors="surrogatepass")


def _as_yaml(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    words, tree, text = _spoilt(yaml.safe_load(data), rng)
    return words, yaml.safe_dump(tree, sort_keys=False).replace(MARK, text).encode(errors="surrogatepass")


def _as_lines(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Some lines spoilt as trees or as bytes, exchanged or run together."""
    lines = data.splitlines(keepends=True)
    done = []
    for at in rng.sample(range(len(lines)), min(len(lines), rng.choice((1, 1, 3)))):
        how = rng.random()
        if how < 0.6:
            words, line = _as_json(lines[at], rng)
            lines[at] = line + b"\n"
        elif how < 0.75:
            words, lines[at] = _raw(lines[at], rng)
        elif how < 0.85:
            words, lines[at] = "run into the next", lines[at].rstrip(b"\n")
        else:
            words, lines[at] = "put at the end", b""
            lines.append(data.splitlines(keepends=True)[at])
        done.append(f"line {at + 1} {words}")
    return ", ".join(done), b"".join(lines)


FORMS: dict[str, Callable[[bytes, random.Random], tuple[str, bytes]]] = {
    "json": _as_json,
    "yaml": _as_yaml,
    "lines": _as_lines,
}
MARK = "PLACE-OF-A-VALUE"
"""Stands in a tree for a value that no library would write."""


def _spoilt(tree: Any, rng: random.Random) -> tuple[str, Any, str]:
    """What was done to a tree, the tree, and the text that is to stand where `MARK` does."""
    tree, text, done = copy.deepcopy(tree), "null", []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            break
        (node, key), name = rng.choice(places), rng.choice(list(CHANGES))
        if name == "another value":
            node[key], text = MARK, rng.choice(VALUES)
            name = f"{text[:20]} for a value"
        else:
            CHANGES[name](node, key, rng)
        done.append(f"{name} at {str(key)[:40]}")
    return ", ".join(done) or "nothing", tree, text


def _places(tree: Any) -> Any:
    """Every container of a tree with each of its keys, or numbers of items."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _remove(node: Any, key: Any, rng: random.Random) -> None:
    del node[key]


def _rename(node: Any, key: Any, rng: random.Random) -> None:
    if isinstance(node, dict):
        node[rng.choice((*NAMES, f"{key}x", str(key)[1:], str(key).upper()))] = node.pop(key)


def _shift(node: Any, key: Any, rng: random.Random) -> None:
    """A number, or a letter of a text, is another one."""
    value = node[key]
    if isinstance(value, int | float) and not isinstance(value, bool):
        node[key] = rng.choice((value + 1, value - 1, -value, value * 2, value + 0.5, value * 10**9, str(value)))
    elif isinstance(value, str) and value:
        at = rng.randrange(len(value))
        node[key] = value[:at] + rng.choice("0aZ_/ \u00e9") + value[at + 1 :]


def _double(node: Any, key: Any, rng: random.Random) -> None:
    if isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    else:
        node[f"{key}2"] = copy.deepcopy(node[key])


def _wrap(node: Any, key: Any, rng: random.Random) -> None:
    node[key] = rng.choice(([node[key]], {"a": node[key]}, str(node[key])))


def _exchange(node: Any, key: Any, rng: random.Random) -> None:
    other = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
    node[key], node[other] = node[other], node[key]


CHANGES: dict[str, Callable[[Any, Any, random.Random], None]] = {
    "another value": _remove,  # put in by _spoilt, which knows the text
    "nothing": _remove,
    "another name": _rename,
    "another number": _shift,
    "one more": _double,
    "a shell around it": _wrap,
    "its neighbour": _exchange,
}


def _link(target: str) -> Put:
    def put(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target or path.name)

    return put


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    (path / "inside").mkdir(parents=True)


PLACES: dict[str, Put] = {
    "nothing": lambda path: path.unlink(missing_ok=True),
    "a folder": _folder,
    "a pipe": _pipe,
    "a link to itself": _link(""),
    "a link to nowhere": _link("nowhere-at-all"),
    "a link to /dev/null": _link("/dev/null"),
    "a link to /dev/zero": _link("/dev/zero"),
    "a link to its own folder": _link("."),
}
"""What may lie where a file is looked for."""
