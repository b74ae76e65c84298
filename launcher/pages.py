"""Pages that are filled in: templates beside this file (`*.j2`), of which those of HTML share a style."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2


def template(name: str, finalize: Callable[[Any], Any] | None = None) -> jinja2.Template:
    """The template of that name. Values are escaped in HTML; elsewhere `finalize` says how they are shown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=finalize,
    )
    return environment.get_template(name)
