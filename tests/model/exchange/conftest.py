import sys

import pytest
from transformers import dynamic_module_utils

from model.exchange.in_transformers import quiet_transformers


@pytest.fixture(scope="module")
def shipped_code(tmp_path_factory):
    """Lets transformers run the modeling files of our exports, as their users do, with its copies out of the home."""
    home, folder = dynamic_module_utils.HF_MODULES_CACHE, str(tmp_path_factory.mktemp("modules"))
    dynamic_module_utils.HF_MODULES_CACHE = folder
    with quiet_transformers():
        yield
    dynamic_module_utils.HF_MODULES_CACHE = home
    if folder in sys.path:
        sys.path.remove(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]
