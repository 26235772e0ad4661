"""The command answers at once while its words are read, and any other program finds the model registered."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSOLE_SCRIPT = "import sys\nfrom hivg_hf.cli import main\nsys.exit(main())\n"
SECONDS = 1.0
IMPORT_SECONDS = 0.2


def cpu_seconds(words, cwd):
    """(processor time, exit status, everything printed) of a program; the least of two runs."""
    spent = []
    for _ in range(2):
        timed = (
            "import resource, subprocess, sys\n"
            "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
            "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
            "print(used.ru_utime + used.ru_stime, done.returncode, done.stdout + done.stderr, sep='|')\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", timed, *words], capture_output=True, text=True, cwd=cwd, check=True
        )
        seconds, status, text = result.stdout.split("|", 2)
        spent.append(float(seconds))
    return min(spent), int(status), text


@pytest.fixture
def console_script(tmp_path, monkeypatch):
    """What pip writes for the entry point `hivg`."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = tmp_path / "hivg"
    path.write_text(CONSOLE_SCRIPT)
    return path


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--help"], 0, "ground"),
        (["--version"], 0, "hivg_hf "),
        (["paint"], 2, "No such command"),
        (["train", "--help"], 0, "--dry-run"),
        (["ground", "--no-such-option"], 2, "No such option"),
        (["evaluate"], 2, "Missing option"),
    ],
)
def test_help_version_and_usage_errors_come_at_once(words, status, said, console_script, tmp_path):
    seconds, found, text = cpu_seconds([sys.executable, str(console_script), *words], tmp_path)
    assert (found, said in text) == (status, True), text
    assert seconds < SECONDS


def test_the_module_is_the_command(console_script, tmp_path):
    seconds, status, text = cpu_seconds([sys.executable, "-m", "hivg_hf", "--version"], tmp_path)
    assert status == 0
    assert re.match(r"hivg_hf \d+\.\d+", text)
    assert seconds < SECONDS


REGISTERED = (
    "import sys\n"
    "import hivg_hf\n"
    "from transformers import AutoConfig\n"
    "print(type(AutoConfig.for_model('hivg')).__name__)\n"
)


@pytest.mark.parametrize("name", ["program.py", "hivg", "hivg.py"])
def test_any_other_program_finds_the_model_registered_whatever_its_name(name, console_script, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / name).write_text(REGISTERED)
    done = subprocess.run([sys.executable, str(tmp_path / "own" / name)], capture_output=True, text=True)
    assert done.stdout == "HiVGConfig\n", done.stderr


def test_the_command_leaves_transformers_alone_until_a_verb_runs_and_names_load_all_the_same(console_script):
    console_script.write_text(
        "# hivg_hf.cli\n"
        "import sys\n"
        "import hivg_hf\n"
        "print('transformers' in sys.modules)\n"
        "print(hivg_hf.HiVGConfig.model_type)\n"
    )
    done = subprocess.run([sys.executable, str(console_script)], capture_output=True, text=True)
    assert done.stdout == "False\nhivg\n", done.stderr


def test_no_verb_loads_torch_or_transformers_before_it_runs(console_script):
    console_script.write_text(
        "# hivg_hf.cli\n"
        "import sys\n"
        "from hivg_hf.cli import VERBS, _load_verb\n"
        "for verb in VERBS:\n"
        "    _load_verb(verb)\n"
        "    print(verb, [name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, str(console_script)], capture_output=True, text=True)
    loaded = [line for line in done.stdout.splitlines() if not line.endswith("[]")]
    assert (done.returncode, loaded) == (0, []), done.stderr
    assert "ground-dataset []" in done.stdout


def test_importing_costs_little_beside_transformers(console_script, tmp_path):
    lines = (
        "import time\n"
        "from transformers import AutoModel, AutoProcessor, pipeline\n"
        "began = time.process_time()\n"
        "import hivg_hf\n"
        "print(time.process_time() - began)\n"
    )
    times = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, cwd=tmp_path, check=True)
        times.append(float(done.stdout))
    assert min(times) < IMPORT_SECONDS
