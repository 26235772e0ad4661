"""A controlled study of HiLoRA and the bridge: methods x bridges x seeds, each a recipe of its own.

Study, load_study, run_study    what is run, from one YAML file, resumable          plan.py, run.py
write_report                    the document, from the results files alone          report.py
"""

from .plan import Cell, Study, load_study
from .report import write_report
from .run import run_study

__all__ = ["Cell", "Study", "load_study", "run_study", "write_report"]
