"""transformers' own common tests, from the source distribution of the installed version.

The wheel leaves them out. `make test` fetches the source distribution into `.cache/`; where that folder is missing,
the tests that need it are skipped with the reason. What the tests import beside themselves is not part of it and is
replaced by the few names below.
"""

import importlib
import os
import sys
import types
from pathlib import Path
from unittest import mock

import pytest
import transformers

ROOT = Path(__file__).parents[2]
PACKAGE = "transformers_common_tests"
# The keyword arguments that transformers' ConfigTester sets on every config.
COMMON_CONFIG_FIELDS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
    "_name_or_path": "somewhere",
}


def folder() -> Path:
    """Where the tests of the installed version are expected."""
    default = ROOT / ".cache" / f"transformers-{transformers.__version__}" / "tests"
    return Path(os.environ.get("TRANSFORMERS_COMMON_TESTS", default))


def load(name: str) -> types.ModuleType:
    """One of the common test modules; skips the calling test module where it was not fetched."""
    if not (folder() / f"{name}.py").is_file():
        pytest.skip(
            f"transformers' common tests are missing in {folder()}: `make common-tests` fetches them from the package "
            "index",
            allow_module_level=True,
        )
    pytest.importorskip("parameterized", reason="transformers' common tests need the package parameterized")
    if PACKAGE not in sys.modules:
        _add(PACKAGE, __path__=[str(folder())])
        for parent in ("exporters", "generation", "utils"):
            _add(f"{PACKAGE}.{parent}", __path__=[])
        _add(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
        _add(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
        _add(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=COMMON_CONFIG_FIELDS)
        # Their pictures are on the Hub; tests that open them do not apply here.
        _add("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)
    # One of them imports transformers once more, by the path of its own checkout.
    with mock.patch("transformers.utils.direct_transformers_import", return_value=transformers):
        return importlib.import_module(f"{PACKAGE}.{name}")


def _add(name: str, **contents: object) -> None:
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
