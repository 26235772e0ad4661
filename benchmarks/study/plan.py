"""What a study runs: a YAML file read into cells, and each cell into recipes.

base           the model whose CLIP every cell starts from, made once by a recipe of its own
  start        per bridge, where the study has one: what bridge and heads learn before the domain shifts
    warm-up    per bridge and seed: bridge and heads on the frozen CLIP, the same for every method
      sweep    per method with rates and rate: a short run, with a seed of its own, that finds the method's rate
      cell     per method: the phases that follow; the method without phases is the warm-up itself

A study file may say `extends: OTHER.yaml`, a file beside it: what it does not hold is the other's, key by key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hivg_hf.training import Recipe, parse_recipe
from hivg_hf.utils.atomic import check_name
from hivg_hf.utils.strict_mapping import build_strictly, read_yaml


@dataclass(frozen=True)
class Method:
    """What follows the warm-up.

    Args:
        label: In the tables.
        phases: As in a recipe; none for the warm-up alone.
        hilora: As in a recipe.
        rates: Learning rates of which the study's sweep chooses one, for all phases; none where they say their own.
    """

    label: str
    phases: list[dict[str, Any]] = field(default_factory=list)
    hilora: dict[str, Any] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Bridge:
    """How the words reach the vision tower.

    Args:
        label: In the tables.
        config: `HiVGConfig` fields that differ from the base's.
        constant_text: The bridge reads one fixed expression, in training and in measuring.
    """

    label: str
    config: dict[str, Any] = field(default_factory=dict)
    constant_text: bool = False


@dataclass(frozen=True)
class Start:
    """What every bridge learns once, before seeds part.

    Args:
        data: `train` and `validation` as in a recipe.
        phases: As in a recipe.
        seed: Of the data's order and of what is new in the model.
    """

    data: dict[str, Any]
    phases: list[dict[str, Any]]
    seed: int = 0


@dataclass(frozen=True)
class Sweep:
    """Short runs that find the rate of every method that has `rates`, with the first bridge of the grid.

    Args:
        seed: Of the runs and their warm-up; none of the study's own.
        steps: Of each, shared out among a method's phases as its own steps are.
    """

    seed: int
    steps: int


@dataclass(frozen=True)
class Comparison:
    """A question that two cells answer: `first` minus `second`, seed by seed.

    Args:
        question: In words.
        first, second: [method, bridge].
    """

    question: str
    first: list[str]
    second: list[str]


@dataclass(frozen=True)
class Study:
    """A whole study.

    Args:
        name: Of its folder and its document.
        base: Folder or Hub id of the model to start from, `shipped` for the one in the wheel, or a recipe (a mapping)
            that makes it.
        data: `train`, `validation` and `tests` as in a recipe; every test is measured beside its control.
        start: What comes between the base and every warm-up, or None.
        sweep: How the rates of methods are found, or None where phases say them.
        warmup: Phases of the warm-up; none begins at the start.
        methods: By name.
        bridges: By name.
        grid: Names of the methods and bridges that are crossed.
        seeds: Of every cell.
        singles: Pairs [method, bridge] beyond the grid: one factor at a time.
        defaults: Of every phase.
        workers: Data loading processes.
        comparisons: Pairs of cells whose difference is reported.
        not_run: What the study leaves out, a sentence each, for the document.
        title: Of its part of the document; the name by default.
        document: Title of a document with several studies, in the first of them.
        introduction, findings: Text of the document, before the tables and after them.
    """

    name: str
    base: dict[str, Any] | str
    data: dict[str, Any]
    warmup: list[dict[str, Any]]
    methods: dict[str, Any]
    bridges: dict[str, Any]
    grid: dict[Literal["methods", "bridges"], list[str]]
    seeds: list[int]
    start: Start | None = None
    sweep: Sweep | None = None
    singles: list[list[str]] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    workers: int = 0
    comparisons: list[Comparison] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    title: str = ""
    document: str = ""
    introduction: str = ""
    findings: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "Study")
        for kind, names in (
            ("Method", self.methods),
            ("Bridge", self.bridges),
            ("Test", self.data.get("tests") or {}),
        ):
            for name in names:
                check_name(name, kind)
        compared = [cell for comparison in self.comparisons for cell in (comparison.first, comparison.second)]
        for method, bridge in [*self.pairs(), *compared]:
            if method not in self.methods or bridge not in self.bridges:
                raise ValueError(
                    f"The study has no cell ({method}, {bridge}): methods are {', '.join(self.methods)}; bridges are "
                    f"{', '.join(self.bridges)}."
                )
        if self.sweep is not None and self.sweep.seed in self.seeds:
            raise ValueError(
                f"The sweep's seed must be none of the study's seeds {self.seeds}. Got {self.sweep.seed}."
            )

    def pairs(self) -> list[tuple[str, str]]:
        """(method, bridge) of every cell, the grid bridge by bridge, then the singles."""
        return [*self._grid_pairs(), *self._single_pairs()]

    def _grid_pairs(self) -> list[tuple[str, str]]:
        return [(method, bridge) for bridge in self.grid["bridges"] for method in self.grid["methods"]]

    def _single_pairs(self) -> list[tuple[str, str]]:
        return [(method, bridge) for method, bridge in self.singles]

    def method(self, name: str) -> Method:
        """A method by name."""
        return build_strictly(Method, self.methods[name], f"methods.{name}")

    def bridge(self, name: str) -> Bridge:
        """A bridge by name."""
        return build_strictly(Bridge, self.bridges[name], f"bridges.{name}")

    def runs(self) -> Iterator[Cell]:
        """Sweeps and cells in the order in which they run: the grid's before those of the singles."""
        swept: set[str] = set()
        for pairs in (self._grid_pairs(), self._single_pairs()):
            for method in dict.fromkeys(method for method, _ in pairs):
                if method not in swept:
                    yield from self.sweeps(method)
                swept.add(method)
            # seed by seed, so that a study stopped early has whole grids
            for seed in self.seeds:
                yield from (Cell(method, bridge, seed) for method, bridge in pairs)

    def cells(self) -> Iterator[Cell]:
        """Every cell that the document tells of; sweeps are none."""
        return (cell for cell in self.runs() if cell.rate is None)

    def sweeps(self, method: str) -> list[Cell]:
        """The runs that find a method's rate; none where its phases say it."""
        if self.sweep is None:
            return []
        bridge, seed = self.grid["bridges"][0], self.sweep.seed
        return [Cell(method, bridge, seed, rate) for rate in self.method(method).rates]

    def start_recipe(self, bridge: str, base: str) -> Recipe:
        """The recipe of a bridge's start, which all its cells share.

        Raises:
            ValueError: The study has no start.
        """
        if self.start is None:
            raise ValueError(f"The study {self.name} has no `start`: its warm-ups begin at the base.")
        model = {"checkpoint": base, "config": self.bridge(bridge).config}
        name = f"{self.name}-start-{bridge}"
        return self._recipe(name, self.start.seed, model, self.start.data, self.start.phases, {})

    def warmup_recipe(self, cell: Cell, start: str) -> Recipe:
        """The recipe of a cell's warm-up, which all methods with its bridge and seed share.

        Args:
            cell: Any cell with that bridge and seed.
            start: Folder or Hub id of the bridge's start, or of the base where the study has no start.
        """
        name = f"{self.name}-warmup-{cell.bridge}-{cell.seed}"
        model = {"checkpoint": start, "config": self.bridge(cell.bridge).config}
        return self._recipe(name, cell.seed, model, self.data, self.warmup, {})

    def recipe(self, cell: Cell, warmup: str, rate: float | None = None) -> Recipe:
        """The recipe of a cell or a sweep, from the model of its warm-up.

        Args:
            cell: Which.
            warmup: Folder of that model.
            rate: The method's own, where it has `rates`.
        """
        method, rate = self.method(cell.method), cell.rate if rate is None else rate
        phases = [phase if rate is None else {**phase, "learning_rate": rate} for phase in method.phases]
        if cell.rate is not None and self.sweep is not None:
            share = self.sweep.steps / sum(phase["steps"] for phase in phases)
            phases = [{**phase, "steps": round(share * phase["steps"])} for phase in phases]
        return self._recipe(f"{self.name}-{cell}", cell.seed, {"checkpoint": warmup}, self.data, phases, method.hilora)

    def _recipe(
        self,
        name: str,
        seed: int,
        model: dict[str, Any],
        data: dict[str, Any],
        phases: list[dict[str, Any]],
        hilora: dict[str, Any],
    ) -> Recipe:
        data = {key: value for key, value in data.items() if key != "tests"}
        content = {"name": name, "seed": seed, "model": model, "data": data, "phases": phases}
        return parse_recipe({**content, "hilora": hilora, "defaults": self.defaults, "workers": self.workers})


@dataclass(frozen=True)
class Cell:
    """One run of the study; with a rate, one of its sweep."""

    method: str
    bridge: str
    seed: int
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.bridge}-{self.method}-{self.seed}" + ("" if self.rate is None else f"-rate-{self.rate:g}")

    def results(self, folder: Path) -> Path:
        """Where its results file stands in the study's folder of results."""
        return folder / ("" if self.rate is None else "sweep") / f"{self}.json"


def load_study(path: str | Path) -> Study:
    """Read and check a study file.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is not YAML, or holds unknown keys, wrong types, or cells of unknown methods and bridges.
    """
    content = _read_whole(Path(path))
    study = build_strictly(Study, content, str(path))
    for name in study.methods:
        study.method(name)
    for name in study.bridges:
        study.bridge(name)
    return study


def _read_whole(path: Path) -> dict[str, Any]:
    """A study file on top of the one that it extends; a document is titled by its own first study alone."""
    content = dict(read_yaml(path, "study", own="benchmarks/study"))
    if (base := content.pop("extends", None)) is None:
        return content
    return {**_read_whole(path.parent / str(base)), "document": "", **content}
