"""Which files a folder of Hugging Face `datasets` consists of.

Dataset.save_to_disk        state.json lists data-00000-of-00002.arrow ...
load_dataset's cache        dataset_info.json tells splits and numbers of files: json-train.arrow ...
DatasetDict.save_to_disk    dataset_dict.json names folders of the first kind
"""

from collections.abc import Callable
from typing import Any

from common.json_lines import Form, parse_json
from common.mistakes import Mistake

STATE = Form({"_data_files": list})
INFO = Form({"splits": dict})
SPLITS = Form({"splits": list})


def dataset_files(url: str, read: Callable[[str], bytes]) -> list[str] | None:
    """Names of the files with the documents of a dataset's folder, None when it is the folder of none.

    `read` gives the content of a file by its name, or FileNotFoundError. ValueError when the folder holds several
    splits, of which one has to be chosen, or a dataset in a form that is not read.
    """
    if (state := _parsed(url, "state.json", read, STATE)) is not None:
        if state.get("_indices_data_files"):
            raise Mistake(f"{url}: its rows are chosen by a file of indices; save it anew with a recent 'datasets'")
        return [_text(file, "filename") for file in state["_data_files"]]
    if (splits := _parsed(url, "dataset_dict.json", read, SPLITS)) is not None:
        names = [str(name) for name in splits["splits"]]
        raise Mistake(f"{url}: holds the splits {', '.join(names)}; name one, such as '{url}/{next(iter(names), '')}'")
    info = _parsed(url, "dataset_info.json", read, INFO)
    return None if info is None else _cached_files(url, info)


def _cached_files(url: str, info: dict[str, Any]) -> list[str]:
    name = _text(info, "dataset_name") or _text(info, "builder_name")
    splits: dict[str, Any] = info["splits"]
    if len(splits) != 1:
        first = next(iter(splits), "train")
        raise Mistake(
            f"{url}: holds the splits {', '.join(splits) or '(none)'}; name the files of one, such as "
            f"'{url}/{name}-{first}*.arrow'"
        )
    ((split, facts),) = splits.items()
    lengths = facts.get("shard_lengths") if isinstance(facts, dict) else None
    count = len(lengths) if isinstance(lengths, list) else 1
    prefix = f"{name}-{split}"
    return [f"{prefix}-{at:05d}-of-{count:05d}.arrow" for at in range(count)] if count > 1 else [f"{prefix}.arrow"]


def _parsed(url: str, name: str, read: Callable[[str], bytes], form: Form) -> dict[str, Any] | None:
    try:
        content = read(name)
    except FileNotFoundError:
        return None
    try:
        found = parse_json(content)
        fault = form.fault(found)
    except ValueError as error:
        fault = str(error)
    if fault:
        raise Mistake(f"{url}/{name}: does not describe a dataset, for {fault}; name the .arrow files themselves")
    return found


def _text(record: Any, key: str) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    return value if isinstance(value, str) else ""
