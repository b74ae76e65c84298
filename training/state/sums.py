"""`checksums.json`: the xxh3_128 of every file of a checkpoint, and of the list itself.

The list must name exactly the files that the index implies, and its own digest must fit, so that an entry that is
dropped or edited is damage, and nothing that is not listed is ever read.
"""

import json
from collections.abc import Iterable, Mapping

import xxhash

from common.json_lines import parse_json

CHECKSUMS = "checksums.json"


def dump_sums(digests: Mapping[str, str]) -> bytes:
    """`checksums.json` of files by name."""
    return json.dumps({"files": dict(sorted(digests.items())), "digest": _digest(digests)}, indent=1).encode()


def parse_sums(data: bytes) -> dict[str, str]:
    """Digests by name. ValueError when the list is broken, or was changed after it was written."""
    facts = parse_json(data)
    if not isinstance(facts, dict) or not isinstance(facts.get("files"), dict):
        raise ValueError("it lists no files")
    digests = {str(name): str(digest) for name, digest in facts["files"].items()}
    if facts.get("digest") != _digest(digests):
        raise ValueError("it was changed after it was written")
    return digests


def check_complete(digests: Mapping[str, str], files: Iterable[str]) -> None:
    """ValueError when the list is not one of exactly these files."""
    expected = set(files)
    for name in sorted(expected ^ digests.keys()):
        raise ValueError(f"it lacks {name}" if name in expected else f"it lists {name}, no file of the checkpoint")


def _digest(digests: Mapping[str, str]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(sorted(digests.items())).encode())
