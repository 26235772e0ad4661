"""A controlled study of HiLoRA and the bridge: methods x bridges x seeds, each a recipe of its own.

Study, load_study    what is run, from one YAML file        plan.py
run_study            run it, resumable, several at a time   schedule.py, run.py
write_report         the document, from the results alone   report.py
"""

from .plan import Cell, Study, load_study
from .report import write_report
from .schedule import run_study

__all__ = ["Cell", "Study", "load_study", "run_study", "write_report"]
