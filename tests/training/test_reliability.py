"""Phases that train on the rows whose labels their model agrees with: which they are, resumed exactly, refused where
nothing could judge."""

import json

import datasets
import jsonschema
import numpy as np
import pytest
from safetensors.torch import load_file

from helpers.training import colored_box_rows, folder_bytes, run_staged, tiny_recipe
from hivg_hf.data import NegativeRows
from hivg_hf.data.schema import FEATURES
from hivg_hf.training import HiVGTrainer, describe_plan, parse_recipe, plan_training, reliability, staged
from hivg_hf.training.preflight import check_before_training
from hivg_hf.training.recipe_schema import recipe_schema
from hivg_hf.training.reliability import Reliability

TRUSTED = {"source": "refshapes", "seed": 5, "split": "val", "size": 10}


def recipe_with(checkpoint, number=1, **options):
    """Warm-up and one stage; the phase of this number chooses among its rows."""
    content = tiny_recipe(checkpoint)
    content["phases"] = content["phases"][:2]
    content["phases"][number]["reliability"] = options
    return content


def answer(monkeypatch, overlap):
    """Let every model give the label's box, moved so that the IoU of both is that of the row's number."""

    def predict(model, processor, rows, **_):
        found = []
        for at, (x1, y1, x2, y2) in enumerate(rows["box"]):
            move = (x2 - x1) * (1 - overlap[at]) / (1 + overlap[at])
            found.append({"id": at, "box_xyxy": [x1 + move, y1, x2 + move, y2], "score": 0.9})
        return found

    monkeypatch.setattr("hivg_hf.evaluation.predict", predict)


def read(folder, name):
    return json.loads((folder / "phases" / name / "kept.json").read_text())


def table(rows):
    return datasets.Dataset.from_list(rows, features=FEATURES)


def test_rows_below_the_threshold_are_left_out(monkeypatch):
    answer(monkeypatch, [0.9, 0.2, 0.6, 0.49, 0.51])
    kept, threshold = Reliability(threshold=0.5).keep(table(colored_box_rows(5)), None, (None, None), 4)
    assert kept.tolist() == [True, False, True, False, True]
    assert threshold == 0.5


@pytest.mark.parametrize(("recall", "expected"), [(1.0, 0.1), (0.9, 0.2), (0.5, 0.6)])
def test_trusted_rows_choose_a_threshold_that_keeps_their_share(monkeypatch, recall, expected):
    answer(monkeypatch, [number / 10 for number in range(1, 11)])
    rows = table(colored_box_rows(10))
    kept, threshold = Reliability(trusted=TRUSTED, recall=recall).keep(rows, rows, (None, None), 4)
    assert threshold == pytest.approx(expected, abs=1e-6)
    assert kept.sum() == 10 * recall


def test_without_a_threshold_it_keeps_what_hivg_clean_would_not_list(monkeypatch):
    overlap = np.random.default_rng(1).uniform(0.85, 0.95, 60)
    overlap[::10] = 0.05
    answer(monkeypatch, overlap)
    kept, threshold = Reliability().keep(table(colored_box_rows(60)), None, (None, None), 4)
    assert np.flatnonzero(~kept).tolist() == [0, 10, 20, 30, 40, 50]
    assert threshold is None


def test_a_phase_trains_on_the_rows_it_keeps_and_says_so(tiny_checkpoint, tmp_path, monkeypatch):
    answer(monkeypatch, [0.9] * 10 + [0.1] * 14)
    seen, train = {}, HiVGTrainer.train

    def remember(self, *args, **kwargs):
        seen[self.args.output_dir.rpartition("-")[2]] = list(self.train_dataset["sent_id"])
        return train(self, *args, **kwargs)

    monkeypatch.setattr(HiVGTrainer, "train", remember)
    run_staged(recipe_with(tiny_checkpoint, threshold=0.5), str(tmp_path))
    assert seen["stage_1"] == seen["warmup"][:10]
    rule = "kept where label and model have an IoU of 0.5 or more"
    assert read(tmp_path, "02-stage_1") == {"rows": 24, "kept": list(range(10)), "threshold": 0.5, "rule": rule}
    warmup, stage = json.loads((tmp_path / "results.json").read_text())["phases"]
    assert "reliability" not in warmup
    assert stage["reliability"] == {"rows": 24, "kept": 10, "threshold": 0.5, "rule": rule}
    assert stage["steps"] == 1  # one epoch of 10 rows in batches of 8
    assert f"stage_1 trained on 10 of 24 rows, {rule}." in (tmp_path / "merged" / "README.md").read_text()


def test_the_model_that_the_phase_before_left_judges(tiny_checkpoint, tmp_path, monkeypatch):
    judges, keep = [], Reliability.keep

    def remember(self, rows, trusted, opened, batch_size):
        judges.append(opened[0])
        return keep(self, rows, trusted, opened, batch_size)

    monkeypatch.setattr(Reliability, "keep", remember)
    content = recipe_with(tiny_checkpoint, threshold=0.01)
    content["phases"][0]["keep"] = "last"
    run_staged(content, str(tmp_path))
    (judge,) = judges
    left = load_file(tmp_path / "phases" / "01-warmup" / "result" / "model.safetensors")
    name = next(name for name in left if name.startswith("grounding_head.") and name.endswith("weight"))
    assert judge.state_dict()[name].cpu().equal(left[name])


def test_a_resumed_run_keeps_the_same_rows_and_ends_with_the_same_weights(tiny_checkpoint, tmp_path, monkeypatch):
    content = recipe_with(tiny_checkpoint, trusted=TRUSTED, recall=0.8)
    run_staged(content, str(tmp_path / "unbroken"))
    kept, judged, broken = read(tmp_path / "unbroken", "02-stage_1"), [], tmp_path / "broken"
    keep = Reliability.keep
    monkeypatch.setattr(Reliability, "keep", lambda *arguments: judged.append(1) or keep(*arguments))
    # before the rows were written, after it, and after training on them
    moments = ((reliability, "write_json", 1), (staged, "make_trainer", 2), (staged, "choose_weights", 2))
    for module, name, judgements in moments:
        with monkeypatch.context() as moment:
            moment.setattr(module, name, dying_in_stage(getattr(module, name)))
            with pytest.raises(KeyboardInterrupt):
                run_staged(content, str(broken))
        assert len(judged) == judgements
    (broken / "phases" / "02-stage_1" / "kept.json").write_text('{"rows": 24, "ke')  # and again where it is damaged
    run_staged(content, str(broken))
    assert len(judged) == 3
    assert read(broken, "02-stage_1") == kept
    assert 8 <= len(kept["kept"]) < 24
    assert folder_bytes(broken) == folder_bytes(tmp_path / "unbroken")


def dying_in_stage(function):
    """The same, which dies where it is called for the phase stage_1: with its file, its folder or itself."""

    def call(*arguments, **options):
        names = [str(one) for one in arguments] + [str(getattr(one, "path", "")) for one in arguments]
        if any("stage_1" in name for name in names):
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return call


def test_too_few_rows_are_refused(tiny_checkpoint, tmp_path, monkeypatch):
    answer(monkeypatch, [0.9] * 7 + [0.1] * 17)
    with pytest.raises(ValueError, match=r"Phase 'stage_1' keeps 7 of 24 rows, fewer than its batch of 8: lower"):
        run_staged(recipe_with(tiny_checkpoint, threshold=0.5), str(tmp_path))


def test_rows_that_ask_for_nothing_are_judged_as_their_table_says_them(tiny_checkpoint, tmp_path, monkeypatch):
    answer(monkeypatch, [0.9] * 12 + [0.1] * 12)
    content = recipe_with(tiny_checkpoint, threshold=0.5)
    content["data"]["train"]["negatives"] = {"share": 0.5}
    run_staged(content, str(tmp_path))
    assert read(tmp_path, "02-stage_1")["kept"] == list(range(12))


def test_kept_rows_ask_what_they_asked_among_all():
    rows = NegativeRows(table(colored_box_rows(12)), {"share": 0.5})
    chosen = rows.select([1, 4, 7])
    assert len(chosen) == 3
    assert list(chosen["sent_id"]) == [rows["sent_id"][at] for at in (1, 4, 7)]
    for epoch in range(4):
        asked = [chosen.row_at(epoch, at)["expression"] for at in range(3)]
        assert asked == [rows.row_at(epoch, at)["expression"] for at in (1, 4, 7)]


def test_the_plan_says_which_rows_and_that_steps_may_be_fewer(tiny_checkpoint):
    text = describe_plan(plan_training(parse_recipe(recipe_with(tiny_checkpoint))))
    warmup, stage = text.split("\n\n")
    assert "rows                   24\n" in stage
    assert "keeps rows             where the model finds the label more likely right than wrong\n" in stage
    assert "optimizer steps        up to 3\n" in stage
    assert "keeps" not in warmup
    content = recipe_with(tiny_checkpoint, trusted=TRUSTED)
    content["phases"][1] = {**content["phases"][1], "steps": 5}
    del content["phases"][1]["epochs"]
    stage = describe_plan(plan_training(parse_recipe(content))).split("\n\n")[1]
    assert "keeps rows             where the model agrees as much as with 90% of trusted rows\n" in stage
    assert "optimizer steps        5\n" in stage


def test_the_schema_knows_the_option(tiny_checkpoint):
    schema = recipe_schema()
    jsonschema.validate(recipe_with(tiny_checkpoint, trusted=TRUSTED, recall=0.8), schema)
    with pytest.raises(jsonschema.ValidationError, match="treshold"):
        jsonschema.validate(recipe_with(tiny_checkpoint, treshold=0.5), schema)
    described = schema["$defs"]["phase"]["properties"]["reliability"]["anyOf"][0]["properties"]
    assert described["recall"]["default"] == 0.9
    assert described["threshold"]["description"].startswith("Keep rows whose label")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"treshold": 0.5}, r"`treshold` in recipe.phases\[1\].reliability: .*threshold"),
        ({"threshold": 1.5}, r"reliability.threshold must be above 0 and at most 1. Got 1.5"),
        ({"threshold": 0.0}, r"reliability.threshold must be above 0 and at most 1. Got 0.0"),
        ({"trusted": TRUSTED, "recall": 0.0}, r"reliability.recall must be above 0"),
        ({"threshold": 0.5, "trusted": TRUSTED}, r"`trusted` rows choose the threshold: omit"),
        ({"trusted": {"split": "val"}}, r"reliability.trusted needs `source` and `split`"),
        ({"trusted": {**TRUSTED, "sede": 3}}, r"`sede` in reliability.trusted"),
        ({"trusted": {**TRUSTED, "source": "mixture", "parts": []}}, r"needs one table. Got a mixture"),
    ],
)
def test_options_that_cannot_be_are_refused(tiny_checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe(recipe_with(tiny_checkpoint, **options))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"preset": "tiny", "tokenizer": "refshapes"}}, r"Phase 'warmup' .* has not learned to ground yet"),
        ({"hilora": {"schedule": "shared"}, "number": 1}, r"Phase 'stage_1' .* give `steps`, not `epochs`"),
    ],
)
def test_phases_that_nothing_could_judge_are_refused(tiny_checkpoint, changes, message):
    changes = dict(changes)
    content = {**recipe_with(tiny_checkpoint, changes.pop("number", 0)), **changes}
    with pytest.raises(ValueError, match=message):
        parse_recipe(content)


def test_streams_and_mixtures_are_refused(tiny_checkpoint, tmp_path):
    content = recipe_with(tiny_checkpoint)
    train = content["data"]["train"]
    content["data"]["train"] = {"source": "mixture", "split": "train", "parts": [{**train}, {**train, "seed": 6}]}
    with pytest.raises(ValueError, match=r"Phase 'stage_1' .* needs one table. Got a mixture"):
        parse_recipe(content)


def test_a_wrong_split_of_trusted_rows_is_found_before_the_first_step(tiny_checkpoint, tmp_path):
    content = recipe_with(tiny_checkpoint, trusted={**TRUSTED, "source": str(tmp_path / "no.csv"), "size": 3})
    content["phases"][1]["reliability"]["trusted"] = {
        "source": str(tmp_path / "no.csv"), "split": "val", "box_format": "xyxy"
    }  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"phases.stage_1.reliability.trusted: .*no.csv"):
        check_before_training(parse_recipe(content), tmp_path / "run")
