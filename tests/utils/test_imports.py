"""Optional packages are asked for with the command that installs them."""

from pathlib import Path

import pytest

from hivg_hf.utils.imports import is_package_available, require_package


def test_installed_package_is_returned() -> None:
    assert require_package("json.decoder", extra="data").__name__ == "json.decoder"
    assert is_package_available("json")


def test_missing_package_names_the_extra_that_installs_it() -> None:
    with pytest.raises(ImportError, match=r"no_such_package is needed .*: pip install 'hivg_hf\[plots\]'"):
        require_package("no_such_package.part", extra="plots")
    assert not is_package_available("no_such_package")


def test_missing_dependency_of_an_installed_package_is_the_one_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        require_package("half_installed", extra="plots")
