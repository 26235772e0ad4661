"""The measured size of the change that a converted checkpoint sees when batches are no longer mixed."""

from pathlib import Path

import pytest

from scripts.measure_batch_mixing import BEGIN, END, NAMES, measure, table

PAGE = Path(__file__).parents[2] / "docs" / "convert.md"


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_is_not_mixed(name: str) -> None:
    alone = measure(name, 1)
    assert alone["box"] == pytest.approx(0, abs=1e-4)
    assert alone["iou"] == pytest.approx(1, abs=1e-4)
    assert alone["gradient"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_holds_what_the_script_measures(name: str) -> None:
    """Digits may differ by one in the last place, between machines."""
    wanted = table([(name, 8, measure(name, 8))]).splitlines()[-1]
    rows = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()
    (written,) = [row for row in rows if row.startswith(f"| {name} | 8 |")]
    for ours, theirs in zip(_numbers(written), _numbers(wanted), strict=True):
        assert ours == pytest.approx(theirs, rel=0.01, abs=0.011)
    batch, box, spread, *_ = _numbers(written)
    assert batch == 8
    assert box > 0.2 * spread > 0  # the change is there


def _numbers(row: str) -> list[float]:
    """The figures of a row of the table, its name left out."""
    return [float(cell.strip().removesuffix("%")) for cell in row.strip("| \n").split("|")[1:]]
