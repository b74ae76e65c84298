"""What a version of transformers makes of folders of ours; run by readers.py in a virtual environment of its own.

    reader.py REQUESTS.json ANSWERS.json

Nothing of this project is imported here. A request is a folder, its Auto class and ids; an answer the logits and the
ids of some texts, or why there are none.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Logits [B, L, V] as lists, and ids of each text by the folder's tokenizer."""
    folder, auto = request["folder"], getattr(transformers, request["auto"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=request["trusted"])
    model = auto.from_pretrained(folder, trust_remote_code=request["trusted"]).float().eval()
    inputs = {name: torch.tensor(value) for name, value in request["inputs"].items()}
    with torch.no_grad():
        logits = model(**inputs).logits
        answers = {"logits": logits.tolist(), "ids": [tokenizer.encode(text) for text in request["texts"]]}
        if request["generates"]:
            prompt = {name: value for name, value in inputs.items() if name == "input_ids"}
            how = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 3}
            answers["generated"] = model.generate(**prompt, **how)[:, -8:].tolist()
    return answers


def main(requests: Path, answers: Path) -> None:
    """Answers every request; what fails says so in a line."""
    found: dict[str, Any] = {"version": transformers.__version__}
    for name, request in json.loads(requests.read_text()).items():
        try:
            found[name] = answer(request)
        except Exception as error:  # whatever it is, the folder cannot be read by this version
            found[name] = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
    answers.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
