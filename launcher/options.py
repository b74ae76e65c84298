"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, as runs/quickstart.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in training.steps=100.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
