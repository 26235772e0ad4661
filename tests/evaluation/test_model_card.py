"""Cards: filled from results files, valid, and never behind them."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from hivg_hf.evaluation import compare_rows, describe_data
from hivg_hf.evaluation.card_tables import command_of, controls_table, figures_table, score_sentences, shapes_table
from hivg_hf.evaluation.model_card import (
    MARKERS,
    CardFacts,
    build_card,
    check_card,
    make_cards,
    page_block,
    read_facts,
    replace_marked,
)
from hivg_hf.evaluation.run import EvaluationSettings, describe_scores
from hivg_hf.metrics import score_rows, summarize_rows

ROOT = Path(__file__).parents[2]
FACTS = CardFacts(
    name="toy", summary="A toy.", training="By hand.", limits=["It is a toy.", "It knows two shapes."], license="mit"
)
TARGET, ELSEWHERE = [0, 0, 10, 10], [50, 50, 60, 60]


def make_results(right, wrong, controls=("other-expression",), **model):
    """Results of `right` right and `wrong` wrong answers, made as `evaluate_model` makes them."""
    references = [
        {
            "id": i,
            "box": TARGET,
            "expression": f"thing {i}",
            "image_id": str(i),
            "width": 100 + 100 * (i % 2),
            "height": 100,
        }
        for i in range(right + wrong)
    ]
    references += [
        {"id": right + wrong, "box": None, "boxes": [], "no_target": True, "expression": "nothing", "image_id": "x"}
    ]
    boxes = [TARGET] * right + [ELSEWHERE] * (wrong + 1)
    scores = [0.9] * right + [0.2] * (wrong + 1)
    predictions = [
        {"id": i, "box_xyxy": box, "score": score} for i, (box, score) in enumerate(zip(boxes, scores, strict=True))
    ]
    rows = score_rows(predictions, references)
    misled = score_rows([{**one, "box_xyxy": ELSEWHERE} for one in predictions], references)
    return {
        "format_version": 1,
        **summarize_rows(rows, "pixel", resamples=200),
        "score": describe_scores(rows, EvaluationSettings(resamples=0)),
        "controls": {name: compare_rows(rows, misled, resamples=200) for name in controls},
        "settings": {"score_threshold": None, "batch_size": 2},
        "model": {
            "id": "toy", "revision": None, "weights_sha256": "ab" * 32, "parameters": 2_500_000, "dtype": "float32",
            **model,
        },
        "data": describe_data(references, "refshapes", "val", {"seed": 7, "size": 9}),
        "versions": {"hivg_hf": "0.1.0", "torch": "2.13.0"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def results():
    return {"val": make_results(6, 2), "testA": make_results(8, 0)}


def test_the_table_holds_figures_intervals_and_the_control(results):
    lines = figures_table(results).splitlines()
    assert lines[0] == "| data | expressions | Acc@0.5 | Acc@0.9 | mean IoU | control: other expression |"
    assert re.match(r"\| val \| 8 \| 75\.0 \(\d\d\.\d to \d+\.\d\) \| 75\.0 .* \| 0\.0 \|", lines[2])
    assert lines[3].startswith("| testA | 8 | 100.0 (100.0 to 100.0) |")


def test_shapes_controls_and_scores_have_their_own_words(results):
    shapes = shapes_table(results).splitlines()
    assert "n = 4" in shapes[2]
    assert controls_table(results).splitlines()[2].startswith("| val | other expression | 8 | 75.0 | 0.0 | -75.0 (")
    # 6 right above 3 wrong; the threshold keeps the 6 and withholds 2 wrong answers and the one to nothing.
    assert "ROC curve of right against wrong boxes 1.000" in score_sentences(results)
    assert "(chosen on these rows) find expressions that name nothing with precision 33.3 % and recall" in (
        score_sentences(results)
    )


def test_the_card_is_filled_and_valid(results):
    text = str(build_card(FACTS, results))
    card = check_card(text)
    assert card.data.license == "mit"
    assert "visual-grounding" in card.data.tags
    assert "# toy\n" in text
    assert "- It is a toy.\n- It knows two shapes.\n" in text
    assert "2.5 million parameters" in text
    assert "75.0 (" in text
    assert "hivg evaluate --model toy --data refshapes --split val --seed 7 --size 9 --controls" in text
    assert "hivg_hf 0.1.0, torch 2.13.0" in text
    for leftover in ("{{", "{%", "None", "Undefined"):
        assert leftover not in text


def test_the_metadata_reads_back_as_results(results):
    metadata = build_card(FACTS, results).data.to_dict()
    name, entries = model_index_to_eval_results(metadata["model-index"])
    assert name == "toy"
    values = {(entry.dataset_name, entry.metric_name): entry.metric_value for entry in entries}
    assert values["refshapes (val)", "Acc@0.5"] == 0.75
    assert values["refshapes (testA)", "Acc@0.5"] == 1.0
    assert entries[0].dataset_args == {"seed": 7, "size": 9, "protocol": "pixel", "expressions": 8}


def test_expressions_of_the_metadata_are_those_of_the_table_where_all_name_several_things(results):
    plural = copy.deepcopy(results)
    for one in plural.values():
        one["counts"] |= {"one_target": 0, "skipped_several_targets": 8}
    _, entries = model_index_to_eval_results(build_card(FACTS, plural).data.to_dict()["model-index"])
    assert {entry.dataset_args["expressions"] for entry in entries} == {8}


def test_a_model_that_was_not_measured_has_a_card_without_figures():
    text = str(build_card(FACTS, {}))
    card = check_card(text)
    assert "It has not been measured yet." in text
    assert "model-index" not in card.data.to_dict()
    assert "| data |" not in text


def test_results_of_different_weights_make_no_card(results):
    other = {**results, "testB": make_results(1, 1, weights_sha256="cd" * 32)}
    with pytest.raises(ValueError, match=r"results of toy are of different weights: val abababababab, .* testB cdcd"):
        build_card(FACTS, other)


def test_a_card_without_what_the_hub_needs_is_refused(results):
    text = str(build_card(FACTS, results))
    with pytest.raises(ValueError, match="metadata lacks license"):
        check_card(text.replace("license: mit\n", ""))
    with pytest.raises(ValueError, match="model-index does not read back"):
        check_card(text.replace("value: 0.75", "value: good"))


def test_the_command_repeats_every_setting_that_decides_a_figure(results):
    one = {**results["val"], "protocol": "official", "settings": {"score_threshold": 0.25}}
    one["data"] = {**one["data"], "source": "refcoco", "split": "testA", "options": {"root": "/my data"}}
    one["model"] = {**one["model"], "id": "me/model", "revision": "abc", "config_overrides": {"score": "similarity"}}
    assert command_of(one) == (
        "hivg evaluate --model me/model --data refcoco --split testA --revision abc --option 'root=/my data' "
        "--set score=similarity --protocol official --score-threshold 0.25 --controls --out results/testA"
    )


@pytest.fixture
def repository(tmp_path, results):
    """A repository of one card."""
    folder = tmp_path / "model_cards" / "results" / "toy"
    folder.mkdir(parents=True)
    for index, (label, one) in enumerate(results.items()):
        (folder / f"{index:02}-{label}.json").write_text(json.dumps(one))
    facts = {"name": "toy", "summary": "A toy.", "training": "By hand.", "limits": ["Small."], "page": "page.md"}
    facts["checkpoint"] = "checkpoints/toy"
    (tmp_path / "checkpoints" / "toy").mkdir(parents=True)
    (tmp_path / "model_cards" / "toy.yaml").write_text(yaml.safe_dump(facts))
    (tmp_path / "page.md").write_text("# Title\n\n" + "\n".join(MARKERS) + "\n\nThe rest.\n")
    return tmp_path


def test_one_call_writes_the_card_and_the_page_and_the_next_finds_nothing_to_do(repository):
    written = [repository / "checkpoints/toy/README.md", repository / "page.md"]
    assert make_cards(repository, write=False) == written
    assert not written[0].exists()
    assert make_cards(repository) == written
    assert make_cards(repository) == []
    page = written[1].read_text()
    assert page.startswith("# Title\n")
    assert page.endswith("\n\nThe rest.\n")
    assert "| val | 8 | 75.0" in page
    assert "hivg evaluate --model toy" in page


def test_a_changed_result_or_a_figure_typed_by_hand_is_noticed(repository):
    make_cards(repository)
    card, page = repository / "checkpoints/toy/README.md", repository / "page.md"
    page.write_text(page.read_text().replace("75.0 (", "99.0 (", 1))
    assert make_cards(repository, write=False) == [page]
    make_cards(repository)
    path = repository / "model_cards/results/toy/00-val.json"
    path.write_text(json.dumps(make_results(7, 1)))
    assert make_cards(repository, write=False) == [card, page]


def test_a_checkpoint_that_is_still_to_be_trained_gets_no_card_and_the_page_says_so(repository):
    for file in (repository / "model_cards/results/toy").iterdir():
        file.unlink()
    (repository / "checkpoints/toy").rmdir()
    assert make_cards(repository) == [repository / "page.md"]
    assert "`toy`, the checkpoint for the package, has not been measured yet" in (repository / "page.md").read_text()
    assert not (repository / "checkpoints/toy").exists()


def test_a_page_without_markers_is_refused(repository):
    (repository / "page.md").write_text("# Title\n")
    with pytest.raises(ValueError, match=r"Expected these two lines once, in this order: .*results: begin"):
        make_cards(repository)


def test_text_outside_the_markers_stays_as_it_is(results):
    text = f"before \\1\n{MARKERS[0]}\nstale words\n{MARKERS[1]}\nafter\n"
    once = replace_marked(text, page_block("toy", results))
    assert once.startswith("before \\1\n")
    assert once.endswith(f"{MARKERS[1]}\nafter\n")
    assert "stale words" not in once
    assert replace_marked(once, page_block("toy", results)) == once


def test_a_facts_file_with_a_misspelt_key_is_refused(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text("name: toy\nsumary: A toy.\nlimits: []\n")
    with pytest.raises(ValueError, match=r"unknown keys \['sumary'\], missing keys \['summary', 'training'\]"):
        read_facts(path)


def test_cards_and_readme_of_this_repository_are_up_to_date():
    assert make_cards(ROOT, write=False) == [], "run: python scripts/make_cards.py"


def test_a_share_of_empty_questions_that_the_rows_have_is_described_once():
    scores, nothing = np.array([0.9, 0.8, 0.3, 0.2]), [False, False, True, True]
    box, size = [0, 0, 9, 9], {"width": 20, "height": 20}
    references = [
        {"id": at, "box": None if none else box, "boxes": [] if none else [box], "no_target": none, **size}
        for at, none in enumerate(nothing)
    ]
    predictions = [{"id": at, "box_xyxy": [0, 0, 9, 9], "score": score} for at, score in enumerate(scores)]
    described = describe_scores(score_rows(predictions, references), EvaluationSettings())
    assert [report["rate"] for report in described["reports"]] == [0.5, 0.1]


def test_scores_are_described_at_two_shares_of_empty_questions(results):
    one = results["val"]  # 6 right at 0.9, 2 wrong at 0.2, one answer to nothing at 0.2
    described = one["score"]
    assert [report["rate"] for report in described["reports"]] == pytest.approx([1 / 9, 0.1, 0.5])
    errors = [report["calibration_error"] for report in described["reports"]]
    assert errors[0] == pytest.approx((6 * 0.1 + 3 * 0.2) / 9)
    assert errors[1] == pytest.approx(0.1 * 0.2 + 0.9 * (6 * 0.1 + 2 * 0.2) / 8)
    assert errors[2] == pytest.approx(0.5 * 0.2 + 0.5 * (6 * 0.1 + 2 * 0.2) / 8)
    assert described["aurc"] == pytest.approx((6 * 0 + 3 * 1 / 3) / 9)
    balanced = described["balanced_threshold"]
    assert (balanced["recall"], balanced["withheld"]) == (1.0, 0.25)
    sentence = score_sentences({"val": one})
    for part in (
        f"0.133, {errors[1]:.3f} where 10% of the expressions name nothing",
        f"{errors[2]:.3f} where 50%",
        "risk-coverage curve 0.111",
    ):
        assert part in sentence
    assert "Matthews correlation 0.50" in sentence


def test_what_the_hub_reads_about_data_base_and_examples() -> None:
    """Its page links the data and the base, and offers the examples to try."""
    example = {"src": "https://example.org/street.jpg", "candidate_labels": "the man in blue, the left car"}
    facts = replace(FACTS, datasets=["jxu124/refcoco"], base_model="me/hivg-base", widget=[example])
    read = build_card(facts, {}).data.to_dict()
    assert (read["datasets"], read["base_model"], read["widget"]) == (["jxu124/refcoco"], "me/hivg-base", [example])
    assert read["pipeline_tag"] == "zero-shot-object-detection"
    assert not {"datasets", "base_model", "widget"} & set(build_card(FACTS, {}).data.to_dict())
    with pytest.raises(ValueError, match=r"needs src and candidate_labels, .* Got \{'src': 'x', 'text': 'y'\}"):
        replace(FACTS, widget=[{"src": "x", "text": "y"}])
