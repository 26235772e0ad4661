"""How a model breaks: pictures and expressions changed in known ways, measured beside the unchanged rows.

corruptions.py   fifteen changes of pictures in five strengths
wording.py       changes of expressions that keep their meaning, and parts removed from them
conditions.py    a dataset under one change
report.py        all conditions, paired with the unchanged rows; resumable
adversarial.py   projected gradient descent on the pixels
page.py          the report as a plot and a page
"""

from .adversarial import measure_adversarial
from .conditions import ChangedRows, Condition, all_conditions
from .corruptions import CORRUPTIONS, corrupt_image
from .page import write_report
from .report import measure_robustness

__all__ = [
    "CORRUPTIONS",
    "ChangedRows",
    "Condition",
    "all_conditions",
    "corrupt_image",
    "measure_adversarial",
    "measure_robustness",
    "write_report",
]
