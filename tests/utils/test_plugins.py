"""What stands outside the package works inside: by entry points, or by name where somebody allowed it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hivg_hf import load_grounding_dataset
from hivg_hf.hub import load_with_stages
from hivg_hf.metrics import get_protocol
from hivg_hf.training import StagedTraining, parse_recipe
from hivg_hf.training.model_start import build_model
from hivg_hf.utils.plugins import allowing_code, find_plugin
from hivg_hf.utils.whole_weights import load_whole

MODULE = """
from dataclasses import dataclass
from pathlib import Path

from hivg_hf.data.readers.common import Annotations, Draft
from hivg_hf.metrics.protocols import MetricProtocol, get_protocol
from hivg_hf.modeling.modeling_hivg import HeadLinear, HiVGForVisualGrounding
from hivg_hf.training import HeadsPhase

Path(__file__).with_name("imported").touch()


def read_lines(split, source, root):
    lines = Path(root, f"{split}.txt").read_text().splitlines()

    def read(line):
        name, box, expression = line.split("|")
        boxes = [[float(edge) for edge in box.split()]]
        return Draft(str(Path(root, name)), expression, boxes, name, f"{name}-{box}", line)

    return Annotations(source, split, lines, read)


@dataclass(frozen=True, kw_only=True)
class ScalePhase(HeadsPhase):
    def choose_parameters(self, model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("box_head" in name)


def distance(outputs, labels, num_items_in_batch=None):
    return (outputs.pred_boxes - labels).abs().mean()


def spread(outputs, targets, config):
    return outputs["pred_boxes"].std()


def hello(name: str, times: int = 1) -> None:
    "Greet."
    print(" ".join(["hello", name] * times))


strict = get_protocol("ref-l4")


class LongerHead(HiVGForVisualGrounding):
    def __init__(self, config):
        super().__init__(config)
        self.grounding_head.box_head.layers.append(HeadLinear(4, 4))


class Beside(HiVGForVisualGrounding):
    def __init__(self, config):
        super().__init__(config)
        self.extra = HeadLinear(4, 4)
"""
ENTRY_POINTS = """
[hivg_hf.readers]
lines = outside_boxes:read_lines
[hivg_hf.phases]
box-head = outside_boxes:ScalePhase
[hivg_hf.losses]
distance = outside_boxes:distance
spread = outside_boxes:spread
[hivg_hf.metrics]
mine = outside_boxes:strict
[hivg_hf.models]
longer = outside_boxes:LongerHead
[hivg_hf.verbs]
hello = outside_boxes:hello
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A folder on the path with the module `outside_boxes`, which nothing has installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "outside_boxes.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "outside_boxes", raising=False)
    yield folder
    sys.modules.pop("outside_boxes", None)


@pytest.fixture
def package(module):
    """The same, installed with its entry points."""
    metadata = module / "outside_boxes-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-boxes\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return module


@pytest.fixture
def lines(tmp_path):
    """Rows in a format that hivg_hf does not know."""
    from PIL import Image

    folder = tmp_path / "rows"
    folder.mkdir()
    Image.new("RGB", (64, 48), "red").save(folder / "a.png")
    (folder / "train.txt").write_text("a.png|4 4 20 20|the red box\n" * 4)
    return {"root": str(folder), "split": "train"}


def recipe(source, **changes):
    phase = {"name": "a", "train": "heads", "steps": 1, "learning_rate": 1e-4, "batch_size": 4, **changes}
    return {
        "name": "r",
        "model": {"preset": "tiny", "tokenizer": "refshapes"},
        "data": {"train": source, "masks": False},
        "phases": [phase],
    }


def test_a_reader_of_another_package_is_a_source_like_any_other(package, lines):
    rows = load_grounding_dataset("lines", **lines)
    assert (rows[0]["expression"], rows[0]["box"]) == ("the red box", [4.0, 4.0, 20.0, 20.0])
    parsed = parse_recipe(recipe({"source": "lines", **lines}))
    assert parsed.data.train["source"] == "lines"
    with pytest.raises(ValueError, match=r"Unknown key `roott` in data.train: did you mean `root`\?"):
        parse_recipe(recipe({"source": "lines", "split": "train", "roott": "x"}))
    with pytest.raises(ValueError, match=r"Unknown data source 'liness'; .*moondream/refcoco-m, lines"):
        load_grounding_dataset("liness", "train")


def test_code_by_name_is_not_imported_unless_somebody_allows_it(module, lines):
    source = {"source": "outside_boxes:read_lines", **lines}
    refusals = (
        lambda: load_grounding_dataset(**source),
        lambda: parse_recipe(recipe(source)),
        lambda: parse_recipe(recipe({"source": "mixture", "split": "train", "parts": [source]})),
        lambda: parse_recipe(recipe({"source": "refshapes", "split": "train"}, loss="outside_boxes:distance")),
    )
    for refused in refusals:
        with pytest.raises(
            ValueError, match=r"'outside_boxes:\w+' as the .* would import and run code.*add allow_code=True"
        ):
            refused()
    assert not (module / "imported").exists()
    assert load_grounding_dataset(**source, allow_code=True)[0]["expression"] == "the red box"
    assert (module / "imported").exists()


def test_a_run_does_not_remember_the_permission(module, lines, tmp_path):
    plan = parse_recipe(recipe({"source": "outside_boxes:read_lines", **lines}), allow_code=True)
    run = tmp_path / "run"
    StagedTraining(plan, run, allow_code=True).run()
    assert '"allow' not in (run / "recipe.json").read_text()
    shutil.rmtree(run / "phases")  # as if stopped before its first step was kept: it has to read its rows again
    with pytest.raises(ValueError, match="add allow_code=True"):
        StagedTraining(plan, run).run()
    assert (run / "recipe.json").is_file()  # a run that had begun keeps its folder


def test_a_dry_run_imports_code_only_with_the_option(module, lines, tmp_path):
    import yaml

    path = tmp_path / "recipe.yaml"
    content = recipe({"source": "outside_boxes:read_lines", **lines})
    path.write_text(yaml.safe_dump(content))
    words = [sys.executable, "-m", "hivg_hf", "train", str(path), "--dry-run"]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}:{module}"}
    refused = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (refused.returncode, (module / "imported").exists()) == (2, False), refused.stderr
    assert "--allow-code" in refused.stderr
    allowed = subprocess.run([*words, "--allow-code"], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert allowed.returncode == 0, allowed.stderr
    assert "rows                   4" in allowed.stdout


def test_a_model_class_of_another_package_trains_and_opens_as_itself_alone(package, lines, tmp_path):
    content = recipe({"source": "lines", **lines})
    content["model"]["model_class"] = "longer"
    content["phases"].append({**content["phases"][0], "name": "b"})  # which starts from the folder of the first
    StagedTraining(parse_recipe(content), tmp_path / "run").run()
    import outside_boxes

    folder = str(tmp_path / "run" / "model")
    saved, opened = load_file(f"{folder}/model.safetensors"), load_whole(outside_boxes.LongerHead, folder)
    assert torch.equal(
        opened.grounding_head.box_head.layers[3].weight, saved["grounding_head.box_head.layers.3.weight"]
    )
    with pytest.raises(ValueError, match=r"was saved by the class LongerHead, of which hivg_hf would leave out"):
        load_with_stages(folder)
    content["model"] = {"checkpoint": folder, "model_class": "longer"}
    assert build_model(parse_recipe(content).model).grounding_head.box_head.layers[3].weight.shape == (4, 4)


@pytest.mark.parametrize(
    ("name", "allowed", "message"),
    [
        (
            "outside_boxes:LongerHead",
            False,
            r"'outside_boxes:LongerHead' as the model class would import .*allow_code=True",
        ),
        ("outside_boxes:hello", True, r"must be a subclass of HiVGForVisualGrounding. Got 'outside_boxes:hello'"),
        (
            "LongerHaed",
            True,
            r"must be package.module:Class or what a package offers. Got 'LongerHaed'; installed: none",
        ),
    ],
)
def test_a_model_class_needs_permission_and_must_be_one(name, allowed, message, module, lines):
    content = recipe({"source": "refshapes", "split": "train"})
    content["model"]["model_class"] = name
    with pytest.raises(ValueError, match=message):
        parse_recipe(content, allow_code=allowed)
    assert (module / "imported").exists() == (allowed and ":" in name)


def test_parameters_that_no_phase_would_train_are_refused(module):
    content = recipe({"source": "refshapes", "split": "train"})
    content["model"]["model_class"] = "outside_boxes:Beside"
    with allowing_code():
        parsed = parse_recipe(content)
        with pytest.raises(ValueError, match=r"Beside has parameters outside .*\(extra.weight, 2 in all\)"):
            build_model(parsed.model)


def test_a_phase_kind_and_a_loss_of_another_package_train(package, lines, tmp_path):
    content = recipe({"source": "lines", **lines}, train="box-head", loss="distance")
    plan = parse_recipe(content)
    results = StagedTraining(plan, tmp_path / "run").run()
    (phase,) = results["phases"]
    trained = {part: train for part, (train, _) in phase["parameters"].items() if train}
    assert set(trained) == {"grounding head"}
    assert phase["log"][-1]["train_loss"] < 1  # a mean distance of coordinates in 0..1, not HiVG's sum of terms
    with pytest.raises(ValueError, match=r"train must be one of .*'lora', 'peft', 'box-head'. Got 'boxhead'"):
        parse_recipe(recipe({"source": "lines", **lines}, train="boxhead"))
    with pytest.raises(ValueError, match=r"nobody offers the loss 'distanc'; installed are: distance"):
        parse_recipe(recipe({"source": "lines", **lines}, loss="distanc"))


def test_a_loss_term_of_another_package_is_added_by_its_weight(package, lines, tmp_path):
    weights = {"spread": 2.0}
    plan = parse_recipe(recipe({"source": "lines", **lines}, loss_weights=weights, log_every=1))
    (phase,) = StagedTraining(plan, tmp_path / "run").run()["phases"]
    assert phase["log"][0]["loss_spread"] > 0
    assert "loss_giou" in phase["log"][0]
    with pytest.raises(ValueError, match=r"Unknown key `spred` in .*loss_weights"):
        parse_recipe(recipe({"source": "lines", **lines}, loss_weights={"spred": 1.0}))


def test_an_option_of_peft_trains_by_a_recipe_alone(lines, package, tmp_path):
    content = recipe(
        {"source": "lines", **lines}, train="lora", vision_layers=2, text_layers=2, rank=2, name="one", keep="last"
    )
    content["hilora"] = {"mode": "progressive", "lora_options": {"use_dora": True}}
    StagedTraining(parse_recipe(content), tmp_path / "run").run()
    adapter = tmp_path / "run" / "adapters" / "hilora"
    assert json.loads((adapter / "adapter_config.json").read_text())["use_dora"] is True
    assert any("lora_magnitude_vector" in name for name in load_file(adapter / "adapter_model.safetensors"))


def test_a_protocol_and_a_verb_of_another_package_are_found(package, capsys):
    from hivg_hf.cli import main

    assert get_protocol("mine") is get_protocol("ref-l4")
    with pytest.raises(SystemExit) as ended:
        main(["hello", "you", "--times", "2"])
    assert (ended.value.code or 0, capsys.readouterr().out) == (0, "hello you hello you\n")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "hello" in capsys.readouterr().out


def test_what_does_not_load_names_its_package(package):
    (package / "outside_boxes.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(ImportError, match=r"offers 'lines' as hivg_hf.readers does not load: No module named"):
        find_plugin("hivg_hf.readers", "lines")
    assert find_plugin("hivg_hf.readers", "other") is None


def test_permission_ends_with_its_block(module):
    from hivg_hf.utils.plugins import load_code

    with allowing_code():
        assert callable(load_code("outside_boxes:hello", "the test"))
        with pytest.raises(ImportError, match="'outside_boxes:nothing' as the test cannot be imported"):
            load_code("outside_boxes:nothing", "the test")
    with pytest.raises(ValueError, match="add allow_code=True"):
        load_code("outside_boxes:hello", "the test")
