"""The packages and who imports whom: the order of the house, no arrow back up, no cycle, few floors."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A package imports only what stands above it; `modeling` travels to the Hub and imports nothing of ours.
ORDER = (
    "modeling",
    "utils",
    "checkpoints",
    "recipes",
    "visualize",
    "data",
    "metrics",
    "hilora",
    "conversion",
    "hub",
    "inference",
    "zero_shot",
    "labeling",
    "evaluation",
    "training",
    "cli",
)
MOST_FLOORS = 12
MOST_ARROWS = 60
# The root is the front door: it opens the packages, and none of them comes in by it.
ROOT_FILES = {"__init__.py", "__main__.py", "py.typed"}


def sources() -> Iterator[tuple[str, Path]]:
    """(package, file) of every module in a package of hivg_hf; the link hivg_hf/modeling is not followed."""
    for package in ORDER:
        folder = ROOT / package if package == "modeling" else ROOT / "hivg_hf" / package
        yield from ((package, path) for path in sorted(folder.rglob("*.py")))


def imported_packages(path: Path) -> set[str]:
    """Packages of hivg_hf that a file names in import statements, inside functions too; "" is the root.

    What stands under `if TYPE_CHECKING` runs never, and does not count.
    """
    module = "hivg_hf." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("hivg_hf.")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test):
            block.body = []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            names |= {".".join([*base, alias.name]) for alias in node.names}
    ours = [name.split(".") for name in names if name.split(".")[0] == "hivg_hf"]
    return {parts[1] if len(parts) > 1 and parts[1] in ORDER else "" for parts in ours}


def package_graph() -> dict[str, set[str]]:
    """Package to the packages that it imports, itself left out."""
    graph: dict[str, set[str]] = {package: set() for package in ORDER}
    for package, path in sources():
        graph[package] |= imported_packages(path) - {package}
    return graph


def floors(graph: dict[str, set[str]]) -> int:
    """Packages on the longest way down; the graph has no cycle where every import follows the order."""
    height: dict[str, int] = {}
    for package in ORDER:
        height[package] = 1 + max((height[below] for below in graph[package]), default=0)
    return max(height.values())


def test_every_package_has_its_place_in_the_order() -> None:
    entries = {path.name for path in (ROOT / "hivg_hf").iterdir() if path.name != "__pycache__"}
    assert {name for name in entries if (ROOT / "hivg_hf" / name).is_dir()} <= set(ORDER)
    assert {name for name in entries if (ROOT / "hivg_hf" / name).is_file()} == ROOT_FILES


def test_packages_import_only_what_stands_above_them() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} ({package}) imports {name or 'the root'}"
        for package, path in sources()
        for name in imported_packages(path) - {package}
        if name == "" or ORDER.index(name) > ORDER.index(package)
    ]
    assert wrong == []


def test_the_house_is_low_and_has_few_stairs(capsys: pytest.CaptureFixture[str]) -> None:
    graph = package_graph()
    arrows = [(package, below) for package in ORDER for below in sorted(graph[package], key=ORDER.index)]
    drawing = [f"\n{floors(graph)} floors, {len(arrows)} arrows between {len(ORDER)} packages"]
    drawing += [f"  {name:<12} <- {', '.join(sorted(graph[name], key=ORDER.index)) or 'nothing'}" for name in ORDER]
    with capsys.disabled():
        sys.stdout.write("\n".join(drawing) + "\n")
    assert floors(graph) <= MOST_FLOORS
    assert len(arrows) <= MOST_ARROWS
