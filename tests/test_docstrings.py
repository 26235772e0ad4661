"""The examples in docstrings run and print what they say."""

import doctest

import pytest
from transformers import PrinterCallback
from transformers.trainer_callback import ProgressCallback

import hivg_hf
from hivg_hf.data import GroundingCollator
from hivg_hf.modeling.pipeline_hivg import VisualGroundingPipeline

DOCUMENTED = [
    *(GroundingCollator, hivg_hf.HiVGConfig, hivg_hf.HiVGForVisualGrounding, hivg_hf.HiVGProcessor),
    *(VisualGroundingPipeline, hivg_hf.HiVGTrainer, hivg_hf.load_grounding_dataset),
]


@pytest.mark.parametrize("documented", DOCUMENTED, ids=lambda one: one.__name__)
def test_example_runs(documented, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # a Trainer's log on the way is not what its example shows
    monkeypatch.setattr(PrinterCallback, "on_log", lambda *args, **kwargs: None)
    monkeypatch.setattr(ProgressCallback, "on_log", lambda *args, **kwargs: None)
    text = documented.__doc__.replace("```", "")
    example = doctest.DocTestParser().get_doctest(text, {}, documented.__name__, None, 0)
    assert example.examples
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=pytest.fail)
    assert results.failed == 0
