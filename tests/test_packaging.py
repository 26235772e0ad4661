"""The wheel, the source layout, and what files of `modeling/` may import."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from importlib.metadata import metadata
from pathlib import Path

import pytest

from helpers.interpreter import Interpreter

ROOT = Path(__file__).parent.parent
OLDEST_PYTHON = (3, 11)
SOURCE_FOLDERS = ("hivg_hf", "modeling", "tests", "benchmarks", "scripts", "docs", "model_cards")
# huggingface_hub (strict configs) comes with transformers wherever remote code is loaded at all.
MODELING_MAY_IMPORT = {"torch", "transformers", "huggingface_hub", "numpy", "PIL"}

OPEN_WITH_TRUST = """
from transformers import AutoModel, AutoProcessor
opened = [kind.from_pretrained(folder, trust_remote_code=True) for kind in (AutoModel, AutoProcessor)]
result = [type(one).__module__ for one in opened]
"""


def python_sources() -> list[Path]:
    """Every Python file of the repository once; the link hivg_hf/modeling is not followed."""
    sources = [path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return sorted({path.resolve() for path in sources} | {ROOT / "setup.py"})


def imports_of(path: Path, tried: bool = True) -> list[tuple[str, int, list[str]]]:
    """(module, level of relativity, imported names) of every import statement, those inside functions included.

    With `tried=False` those inside a `try` are left out: transformers does not demand them of a user.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside_try = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    found = []
    for node in ast.walk(tree):
        if not tried and id(node) in inside_try:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, 0, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", node.level, [alias.name for alias in node.names]))
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the working tree, without build isolation, so without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("hivg_hf", "modeling"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_each_modeling_file_once(wheel: zipfile.ZipFile) -> None:
    # the checkpoint carries a copy, as every saved folder does
    files = [name for name in wheel.namelist() if "/checkpoints/" not in name]
    names = Counter(Path(name).name for name in files if name.endswith("_hivg.py"))
    expected = {path.name for path in (ROOT / "modeling").glob("*_hivg.py")}
    assert expected
    assert names == dict.fromkeys(expected, 1)
    assert f"hivg_hf/modeling/{min(expected)}" in wheel.namelist()


def test_the_checkpoint_in_the_wheel_opens_without_the_package(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """The build puts the code beside the weights, byte for byte; nothing else of the wheel is needed."""
    prefix = "hivg_hf/checkpoints/hivg-tiny-refshapes/"
    files = [name for name in wheel.namelist() if name.startswith(prefix)]
    code = {name.removeprefix(prefix): wheel.read(name) for name in files if name.endswith(".py")}
    assert code == {path.name: path.read_bytes() for path in (ROOT / "modeling").glob("*_hivg.py")}
    wheel.extractall(tmp_path, files)
    away = Interpreter(tmp_path, with_package=False, environment={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"})
    names = away.run(OPEN_WITH_TRUST, folder=str(tmp_path / prefix))
    away.close()
    assert all(name.startswith("transformers_modules.") for name in names)


def test_the_code_of_the_model_is_in_the_sources_once() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in python_sources() if path.name.endswith("_hivg.py")}
    assert {name for name in found if not name.startswith(("modeling/", "tests/modeling/"))} == set()


def test_wheel_holds_types_marker_license_and_command(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "hivg_hf/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "hivg = hivg_hf.cli:main" in wheel.read(entry_points).decode()


def test_wheel_holds_every_file_beside_the_code(wheel: zipfile.ZipFile) -> None:
    """Checkpoints, templates, stubs: what is read at run time and is not a module."""
    beside = [path for path in (ROOT / "hivg_hf").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    expected = {path.relative_to(ROOT).as_posix() for path in beside}
    assert expected <= set(wheel.namelist())


def test_versions_of_package_and_wheel_agree(wheel: zipfile.ZipFile) -> None:
    source = (ROOT / "hivg_hf" / "utils" / "version.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    assert f"hivg_hf-{version}.dist-info/METADATA" in wheel.namelist()


def test_the_citation_and_the_changelog_name_the_version() -> None:
    from hivg_hf import __version__

    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)


def test_wheel_holds_the_library_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"hivg_hf"}
    modules = {name for name in wheel.namelist() if name.endswith(".py")}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hivg_hf").rglob("*.py")}
    assert expected <= modules


def test_installed_package_is_this_checkout_or_the_link_resolves_it() -> None:
    code = "import hivg_hf.cli, hivg_hf.modeling; print(hivg_hf.modeling.HiVGConfig.__module__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "hivg_hf.modeling.configuration_hivg", result.stderr


def test_link_to_modeling_is_relative() -> None:
    link = ROOT / "hivg_hf" / "modeling"
    assert link.is_symlink()
    assert link.readlink() == Path("../modeling")


def test_sources_parse_under_the_oldest_python() -> None:
    for path in python_sources():
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=OLDEST_PYTHON)


def test_oldest_python_is_the_one_that_is_promised() -> None:
    oldest = f"{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]}"
    assert f'python_requires=">={oldest}"' in (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'target-version = "py{oldest.replace(".", "")}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for document in ("README.md", "CONTRIBUTING.md"):
        assert f"Python {oldest} or newer" in (ROOT / document).read_text(encoding="utf-8"), document


def test_oldest_python_has_the_libraries_that_are_required() -> None:
    """transformers 5.23 does not install on Python 3.10, whatever setup.py promises."""
    for library in ("transformers", "peft", "accelerate", "datasets", "torch", "numpy"):
        demand = re.search(r">=\s*3\.(\d+)", metadata(library)["Requires-Python"])
        assert demand is not None, library
        assert (3, int(demand[1])) <= OLDEST_PYTHON, library


def test_the_lowest_versions_are_those_of_every_requirement_and_extra() -> None:
    """What `make test-lowest` installs; torch stays at its pin."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").partition(".venv-lowest/.ready:")[2]
    (pattern,) = re.findall(r"grep -oE '(.+?)'", makefile)
    bounds = (ROOT / "setup.py").read_text(encoding="utf-8").partition("\nREQUIRED")[2].partition('EXTRAS["dev"]')[0]
    packages = re.findall(r'^ +"(?:\w+": \[")?|", "', bounds, re.MULTILINE)
    assert len(re.findall(pattern, bounds)) == len(packages)
    assert {'"ray[data]>=2.50', '"mkdocs-material>=9.8.2', '"gradio>=6.29.1', '"torch>=2.6'} <= {
        match[0] for match in re.finditer(pattern, bounds)
    }


def test_peft_is_at_least_what_add_adapter_of_transformers_demands() -> None:
    from transformers.integrations.peft import MIN_PEFT_VERSION

    bound = re.search(r'"peft>=([\d.]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert bound is not None
    parts = [int(part) for part in bound[1].split(".")]
    assert parts >= [int(part) for part in MIN_PEFT_VERSION.split(".")][: len(parts)]


def test_the_checkpoint_of_a_checkout_links_to_each_modeling_file() -> None:
    """So that it opens with trust_remote_code where the package is not imported, without a copy in git."""
    folder = ROOT / "hivg_hf" / "checkpoints" / "hivg-tiny-refshapes"
    links = {path.name: path.readlink() for path in folder.glob("*.py")}
    sources = [path.name for path in (ROOT / "modeling").glob("*_hivg.py")]
    assert links == {name: Path("../../../modeling") / name for name in sources}


def test_nothing_imports_modeling_bare() -> None:
    """`import modeling` from the repository root would make a second class object of every name."""
    guilty = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in python_sources()
        for module, level, _ in imports_of(path)
        if level == 0 and module.partition(".")[0] == "modeling"
    ]
    assert guilty == []


def test_modeling_files_import_only_what_travels_with_a_checkpoint() -> None:
    """transformers copies flat relative imports; anything else would be missing, or demanded, at the user's."""
    allowed = MODELING_MAY_IMPORT | sys.stdlib_module_names
    siblings = {path.stem for path in (ROOT / "modeling").glob("*.py")}
    guilty = []
    for path in sorted((ROOT / "modeling").glob("*_hivg.py")):
        for module, level, names in imports_of(path, tried=False):
            relative_sibling = level == 1 and module in siblings
            outside = level == 0 and module.partition(".")[0] in allowed
            if not (relative_sibling or outside):
                guilty.append(f"{path.name}: from {'.' * level}{module} import {', '.join(names)}")
    assert guilty == []


def test_modeling_folder_is_flat_and_its_files_are_named_for_the_model() -> None:
    entries = {path.name for path in (ROOT / "modeling").iterdir() if path.name != "__pycache__"}
    assert all(name == "__init__.py" or name.endswith("_hivg.py") for name in entries), entries


def test_importing_the_package_leaves_out_what_only_some_use() -> None:
    code = "import sys, hivg_hf; print(*{'peft', 'datasets', 'matplotlib', 'pycocotools'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "\n"


def test_the_api_reference_names_what_exists_and_has_docstrings() -> None:
    pages = [(ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("api.md", "model.md")]
    names = re.findall(r"^::: ([\w.]+)$", "\n".join(pages), re.MULTILINE)
    assert len(names) > 10
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name


def test_every_page_of_the_site_is_there() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    pages = re.findall(r"([\w-]+\.md)$", text, re.MULTILINE)
    assert len(pages) > 10
    assert [page for page in pages if not (ROOT / "docs" / page).is_file()] == []
