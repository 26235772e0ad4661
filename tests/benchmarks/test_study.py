"""A study: what it runs, how it resumes after a stop, and a document made from its results alone."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from benchmarks.study import load_study, run_study, schedule, write_report
from benchmarks.study.plan import Cell, Study
from benchmarks.study.run import ControlledTraining, best_rate, make_base
from hivg_hf.checkpoints import TINY_CHECKPOINT
from hivg_hf.training import user_data
from hivg_hf.utils.strict_mapping import build_strictly

REPOSITORY = Path(__file__).parents[2]


def content(base):
    rows = {"source": "refshapes", "masks": False}
    lora = {"train": "lora", "steps": 1, "text_layers": 3, "rank": 2}
    return {
        "name": "little",
        "base": str(base),
        "data": {
            "train": {**rows, "split": "train", "seed": 5, "size": 16},
            "validation": {**rows, "split": "val", "seed": 5, "size": 4},
            "tests": {"val": {**rows, "split": "val", "seed": 6, "size": 8}},
        },
        "seeds": [1, 2],
        "defaults": {"batch_size": 8, "learning_rate": 1e-3, "keep": "last"},
        "start": {
            "data": {"train": {**rows, "split": "train", "seed": 7, "size": 16}},
            "phases": [{"name": "start", "train": "heads", "steps": 1}],
        },
        "warmup": [{"name": "warmup", "train": "heads", "steps": 1}],
        "methods": {
            "heads": {"label": "heads only"},
            "stages": {
                "label": "two stages",
                "phases": [{**lora, "name": "one", "vision_layers": 1}, {**lora, "name": "two", "vision_layers": 2}],
            },
        },
        "bridges": {
            "bridge": {"label": "bridge"},
            "constant": {"label": "constant text", "constant_text": True},
            "none": {"label": "no bridge", "config": {"bridge_layers": []}},
        },
        "grid": {"methods": ["heads", "stages"], "bridges": ["bridge", "constant"]},
        "singles": [["heads", "none"]],
        "comparisons": [{"question": "Stages?", "first": ["stages", "bridge"], "second": ["heads", "bridge"]}],
        "not_run": ["everything else"],
        "introduction": "Why.",
        "findings": "Little.",
    }


@pytest.fixture(scope="module")
def study_file(tiny_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "little.yaml"
    path.write_text(yaml.safe_dump(content(tiny_checkpoint)))
    return path


@pytest.fixture(scope="module")
def finished(study_file):
    """Folders of the runs and of the results of the first seed's grid and one cell of the second's.

    The second call starts processes, two at a time; the others stay in this one, which saves their start.
    """
    study, out, results = load_study(study_file), study_file.parent / "runs", study_file.parent / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "_in_a_process", _in_this_process)
        first = run_study(study, out, results, max_cells=2)
    second = run_study(study, out, results, max_cells=2, jobs=2, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "_in_a_process", _in_this_process)
        third = run_study(study, out, results, max_cells=1)
    return out, results, first, [*second, *third]


def _in_this_process(step, threads):
    function, *arguments = step.call
    function(*arguments)


def test_whole_grids_come_before_single_factors(study_file):
    cells = [str(cell) for cell in load_study(study_file).cells()]
    assert cells[:4] == ["bridge-heads-1", "bridge-stages-1", "constant-heads-1", "constant-stages-1"]
    assert cells[8:] == ["none-heads-1", "none-heads-2"]


def test_methods_share_the_warm_up_of_their_bridge_and_seed(study_file):
    study = load_study(study_file)
    one, two = (study.warmup_recipe(Cell(method, "bridge", 1), "base") for method in ("heads", "stages"))
    assert one == two
    assert study.recipe(Cell("stages", "bridge", 1), "warmup-model").model.checkpoint == "warmup-model"
    assert study.warmup_recipe(Cell("heads", "none", 1), "base").model.config == {"bridge_layers": []}


def test_a_stopped_study_goes_on_where_it_was(finished):
    _, results, first, second = finished
    assert [path.stem for path in first] == ["bridge-heads-1", "bridge-stages-1"]
    assert [path.stem for path in second] == ["constant-heads-1", "constant-stages-1", "bridge-heads-2"]
    assert len(list(results.glob("*.json"))) == 5


def test_seeds_of_a_bridge_share_its_start(study_file, finished):
    out, _, _, _ = finished
    study = load_study(study_file)
    recipe = study.start_recipe("constant", "base")
    assert (recipe.data.train["seed"], recipe.model.checkpoint) == (7, "base")
    for seed in ("1", "2"):
        warmup = json.loads((out / "warmup" / "bridge" / seed / "recipe.json").read_text())
        assert Path(warmup["model"]["checkpoint"]).parent == out / "start" / "bridge"


def test_a_failed_process_ends_the_study_and_leaves_the_rest_to_the_next_run(study_file, finished, tmp_path):
    study = load_study(study_file)
    broken = dataclasses.replace(study, base=str(tmp_path / "nothing"))
    with pytest.raises(RuntimeError, match=r"A process of the start of bridge failed .*: the same command resumes"):
        run_study(broken, tmp_path / "runs", tmp_path / "results")
    assert not list((tmp_path / "results").glob("*"))


def test_a_result_tells_figures_control_and_cost(finished):
    _, results, _, _ = finished
    stages, heads = (json.loads((results / f"bridge-{name}-1.json").read_text()) for name in ("stages", "heads"))
    assert stages["steps"] == {"warmup": 1, "method": 2}
    assert heads["steps"] == {"warmup": 1, "method": 0}
    assert stages["trainable_parameters"] > heads["trainable_parameters"] > 0
    assert stages["peak_memory_mib"] > 10
    assert json.loads((results / "constant-heads-1.json").read_text())["threads"] == 1
    assert stages["seconds"]["warmup"] == heads["seconds"]["warmup"] > 0
    assert stages["seconds"]["method"] > heads["seconds"]["method"] == 0
    assert {"first", "second"} <= set(stages["tests"]["val"]["controls"]["other-expression"]["figures"]["acc@0.5"])
    assert stages["tests"]["val"]["data"]["options"]["seed"] == 6


@pytest.mark.parametrize("constant_text", [True, False])
def test_bridges_under_control_read_one_expression_while_they_train(study_file, tmp_path, constant_text):
    study = load_study(study_file)
    recipe = study.warmup_recipe(Cell("heads", "constant", 1), study.base)
    training = ControlledTraining(recipe, tmp_path, constant_text)
    with training._control:
        model, processor = training._begin(recipe.phases[0], [])
        inputs = processor(images=[Image.new("RGB", (64, 64), "red")] * 2, text=["the red box", "a star"])
        output = model.train()(**inputs, output_hidden_states=True)
        one, other = output.vision_hidden_states[-1]
        output.pred_boxes.sum().backward()
    assert torch.equal(one, other) == constant_text
    bridge = model.clip.vision_model.encoder.layers[model.config.bridge_layers[0]].bridge
    assert bridge.attention.q_proj.weight.grad is not None


def test_the_document_is_made_from_the_results_alone(study_file, finished, tmp_path):
    _, results, _, _ = finished
    study = load_study(study_file)
    document = write_report(study, results, tmp_path / "little.md")
    text = document.read_text()
    assert "5 of 10 cells were run" in text
    seeds = [json.loads((results / f"bridge-heads-{seed}.json").read_text()) for seed in (1, 2)]
    accuracy = [100 * run["tests"]["val"]["figures"]["acc@0.5"] for run in seeds]
    assert f"| heads only | bridge | {sum(accuracy) / 2:.1f} |" in text
    assert "| Stages? |" in text
    assert "- two stages, bridge: seed 2" in text
    assert "- everything else" in text
    assert (tmp_path / "images" / "little-val.png").read_bytes().startswith(b"\x89PNG")
    again = write_report(study, results, tmp_path / "again" / "little.md").read_text()
    assert again == text


def test_the_repository_s_study_can_be_read():
    study = load_study(REPOSITORY / "benchmarks" / "study" / "refshapes-study.yaml")
    assert len(list(study.cells())) == (6 * 3 + 6) * 3
    for cell in study.cells():
        warmup = study.warmup_recipe(cell, "base")
        if study.method(cell.method).phases:
            recipe = study.recipe(cell, "warmup")
            assert sum(phase.steps for phase in recipe.phases) == warmup.phases[0].steps


@pytest.mark.parametrize("names", [("refshapes-study", "refshapes-fair", "later-bridges"), ("own-rows",)])
def test_the_repository_s_documents_are_what_their_results_give(names, tmp_path):
    folder = REPOSITORY / "benchmarks"
    studies = [load_study(folder / "study" / f"{name}.yaml") for name in names]
    document = write_report(studies, folder / "results", tmp_path / f"{names[0]}.md")
    assert document.read_text() == (REPOSITORY / "docs" / f"{names[0]}.md").read_text()


def test_a_question_without_results_is_not_run_and_says_what_lacks(tmp_path):
    """A document of two studies: of the first only the heads were run, of the second nothing."""
    folder = REPOSITORY / "benchmarks"
    studies = [load_study(folder / "study" / f"refshapes-{part}.yaml") for part in ("study", "fair")]
    (tmp_path / "results" / "refshapes-study").mkdir(parents=True)
    for path in (folder / "results" / "refshapes-study").glob("*-heads-long-*.json"):
        shutil.copy(path, tmp_path / "results" / "refshapes-study")
    text = write_report(studies, tmp_path / "results", tmp_path / "both.md").read_text()
    first, second = text.split("## Part 2: ")
    assert first.startswith(f"# {studies[0].document}\n\n## Part 1: {studies[0].title}")
    assert "| A bridge at all (heads) | +9.8 |" in first
    assert (
        "| Stages against all layers at once | not run |  | no results of: HiLoRA, additive, bridge; LoRA on" in first
    )
    assert "9 of 72 cells were run" in first
    assert "None of its 39 cells was run yet" in second
    assert second.count("| not run |  | no results of: ") == len(studies[1].comparisons)
    assert "| full fine-tuning | 5e-05: not run, 0.00015: not run, 0.0005: not run |" in second


def test_the_rate_that_a_method_goes_on_with_stands_in_the_document(swept, tmp_path):
    study, results, _ = swept
    text = write_report(study, results, tmp_path / "swept.md").read_text()
    rate = best_rate(study, "stages", results)
    found = [json.loads(sweep.results(results).read_text())["validation"]["end"]["acc@0.5"]
             for sweep in study.sweeps("stages")]  # fmt: skip
    each = f"0.001: {100 * found[0]:.1f}, 0.003: {100 * found[1]:.1f}"
    assert f"| two stages | {each} | {rate:g}, the last tried |" in text


@pytest.fixture(scope="module")
def swept(tiny_checkpoint, tmp_path_factory):
    """A study with a sweep, run in this process: its file and its results."""
    folder = tmp_path_factory.mktemp("sweep")
    changes = yaml.safe_load(
        """
        extends: little.yaml
        name: swept
        start: null
        seeds: [1]
        sweep: {seed: 0, steps: 2}
        methods:
          stages:
            label: two stages
            rates: [1.0e-3, 3.0e-3]
            hilora: {schedule: shared, order: deep_to_shallow, targets: all-linear}
            phases:
              - {name: one, train: lora, steps: 2, rank: 2, vision_layers: 1, text_layers: 3, coto: {}}
              - {name: two, train: lora, steps: 2, rank: 2, vision_layers: 4, text_layers: 3, loraplus_ratio: 4}
        bridges: {bridge: {label: bridge}}
        grid: {methods: [stages], bridges: [bridge]}
        singles: []
        comparisons: []
        """
    )
    (folder / "little.yaml").write_text(yaml.safe_dump(content(tiny_checkpoint)))
    (folder / "swept.yaml").write_text(yaml.safe_dump(changes))
    study = load_study(folder / "swept.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "_in_a_process", _in_this_process)
        written = run_study(study, folder / "runs", folder / "results")
    return study, folder / "results", written


def test_a_sweep_comes_first_and_gives_the_method_its_rate(swept):
    study, results, written = swept
    names = [str(path.relative_to(results)) for path in written]
    assert names == [
        "sweep/bridge-stages-0-rate-0.001.json",
        "sweep/bridge-stages-0-rate-0.003.json",
        "bridge-stages-1.json",
    ]
    sweeps = [json.loads(path.read_text()) for path in written[:2]]
    assert [one["learning_rate"] for one in sweeps] == [1e-3, 3e-3]
    assert [one["steps"]["method"] for one in sweeps] == [2, 2]
    assert all(one["tests"] == {} for one in sweeps)  # chosen by validation rows alone
    cell = json.loads(written[2].read_text())
    assert cell["steps"]["method"] == 4
    assert cell["learning_rate"] == best_rate(study, "stages", results)
    assert [len(cell["tests"]), cell["validation"]["curve"][-1][0]] == [1, 4]


@pytest.mark.parametrize(("accuracies", "rate"), [((0.4, 0.6), 3e-3), ((0.6, 0.4), 1e-3), ((0.5, 0.5), 1e-3)])
def test_the_best_rate_of_a_sweep_is_the_lowest_of_the_most_accurate(accuracies, rate, swept, tmp_path):
    study, _, _ = swept
    for sweep, accuracy in zip(study.sweeps("stages"), accuracies, strict=True):
        path = sweep.results(tmp_path)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"learning_rate": sweep.rate, "validation": {"end": {"acc@0.5": accuracy}}}))
    assert best_rate(study, "stages", tmp_path) == rate


def test_a_sweep_has_a_seed_of_its_own(tiny_checkpoint):
    with pytest.raises(ValueError, match=r"sweep's seed must be none of the study's seeds \[1, 2\]. Got 2"):
        build_strictly(Study, {**content(tiny_checkpoint), "sweep": {"seed": 2, "steps": 1}}, "study")


def test_every_method_of_the_fair_study_takes_as_many_steps():
    study = load_study(REPOSITORY / "benchmarks" / "study" / "refshapes-fair.yaml")
    old = load_study(REPOSITORY / "benchmarks" / "study" / "refshapes-study.yaml")
    assert (study.base, study.start, study.warmup) == (old.base, old.start, old.warmup)
    assert study.data["train"] == old.data["train"]
    for cell in study.runs():
        recipe = study.recipe(cell, "warmup", None if cell.rate else 1e-3)
        assert sum(phase.steps for phase in recipe.phases) == (630 if cell.rate is None else 150)
        assert {phase.learning_rate for phase in recipe.phases} == {cell.rate or 1e-3}


def test_a_study_without_a_warm_up_begins_at_its_base(tiny_checkpoint, tmp_path):
    changed = {**content(tiny_checkpoint), "warmup": [], "start": None, "seeds": [1], "singles": [], "comparisons": []}
    changed["grid"] = {"methods": ["heads", "stages"], "bridges": ["bridge"]}
    study = build_strictly(Study, changed, "study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "_in_a_process", _in_this_process)
        paths = run_study(study, tmp_path / "runs", tmp_path / "results")
    untouched, stages = (json.loads(path.read_text()) for path in paths)
    assert (untouched["steps"], untouched["trainable_parameters"]) == ({"warmup": 0, "method": 0}, 0)
    assert stages["steps"] == {"warmup": 0, "method": 2}
    assert untouched["tests"]["val"]["counts"]["rows"] == 8
    assert not (tmp_path / "runs" / "warmup").exists()


def test_runs_on_own_rows_are_those_of_the_command():
    """Batches and first rates of `hivg train --data`, for each number of rows, from the shipped checkpoint."""
    study = load_study(REPOSITORY / "benchmarks" / "study" / "own-rows.yaml")
    assert make_base(study, Path("runs")) == TINY_CHECKPOINT
    for cell in study.cells():
        if not study.method(cell.method).phases:
            continue
        kind, rows = re.match(r"(stages|at-once|all-linear)-(\d+)", cell.method).groups()
        recipe = study.recipe(cell, TINY_CHECKPOINT)
        assert {phase.data["size"] for phase in recipe.phases} == {int(rows)}
        assert {phase.batch_size for phase in recipe.phases} == {user_data._defaults(int(rows))["batch_size"]}
        assert (recipe.hilora.targets == "all-linear") == (kind == "all-linear")
        assert (len(recipe.phases) > 1) == (kind == "stages")
        (wanted,) = user_data._phases("checkpoint", user_data._open_base(TINY_CHECKPOINT)[1], None)
        first, last = recipe.phases[0], recipe.phases[-1]
        assert (last.vision_layers, last.text_layers) == (wanted["vision_layers"], wanted["text_layers"])
        assert first.learning_rate == pytest.approx(wanted["learning_rate"], rel=0.03)


def test_bad_studies_are_refused_in_a_sentence(tmp_path, tiny_checkpoint):
    path = tmp_path / "study.yaml"
    with pytest.raises(
        FileNotFoundError, match=r"No study at .*study\.yaml; the repository's own are in benchmarks/study/"
    ):
        load_study(path)
    path.write_text(yaml.safe_dump({**content(tiny_checkpoint), "singles": [["heads", "bridges"]]}))
    with pytest.raises(ValueError, match=r"no cell \(heads, bridges\): methods are heads, stages; bridges are"):
        load_study(path)
    path.write_text(yaml.safe_dump({**content(tiny_checkpoint), "methods": {"heads": {"label": "x", "step": 3}}}))
    with pytest.raises(ValueError, match=r"no cell \(stages, bridge\)"):
        load_study(path)


def test_names_that_leave_the_study_s_folder_are_refused(tiny_checkpoint):
    for key, value, kind in (
        ("name", "../x", "Study"),
        ("methods", {"../x": {"label": "x"}}, "Method"),
        ("bridges", {"/x": {"label": "x"}}, "Bridge"),
        ("data", {"train": {}, "tests": {"a/b": {}}}, "Test"),
    ):
        with pytest.raises(ValueError, match=f"{kind} name .* cannot name a file or folder"):
            build_strictly(Study, {**content(tiny_checkpoint), key: value}, "study")


def test_a_report_needs_results_of_its_own_study(study_file, tmp_path):
    study = load_study(study_file)
    with pytest.raises(FileNotFoundError, match=r"No results file in .*: run the study first"):
        write_report(study, tmp_path, tmp_path / "x.md")
    (tmp_path / "other.json").write_text(json.dumps({"study": "another"}))
    with pytest.raises(ValueError, match="is not a result of the study little"):
        write_report(study, tmp_path, tmp_path / "x.md")


def test_a_study_may_extend_one_that_extends_another():
    """Bridges in the upper half against the preset's: nothing else of the studies below is run again."""
    study = load_study(REPOSITORY / "benchmarks" / "study" / "later-bridges.yaml")
    assert [str(cell) for cell in study.runs()] == [
        f"{bridge}-lora-attention-{seed}" for seed in (1, 2, 3) for bridge in ("bridge", "late")
    ]
    fair = load_study(REPOSITORY / "benchmarks" / "study" / "refshapes-fair.yaml")
    assert (study.base, study.data, study.warmup) == (fair.base, fair.data, fair.warmup)
    assert study.start_recipe("late", "base").model.config == {"bridge_layers": [3, 4, 5]}
    assert not study.document
