"""Python processes that stay, so that many tests pay for the import of torch once: with or without `hivg_hf`."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# Runs in the other process. Orders and answers have descriptors of their own: what libraries print does not mix with
# them, and a library that asks a question finds nobody to answer.
SERVE = """
import json, os, sys, traceback
orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)
for line in orders:
    order = json.loads(line)
    names = dict(order["names"])
    try:
        exec(compile(order["code"], "<test>", "exec"), names)
        answer = {"result": names.get("result")}
    except BaseException as error:
        answer = {"error": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
    answers.write(json.dumps(answer) + chr(10))
    answers.flush()
"""


class CodeFailedError(Exception):
    """The code raised an error: `kind` is the name of its class, `message` its text."""

    def __init__(self, kind: str, message: str, traceback: str) -> None:
        super().__init__(f"{kind}: {message}\n{traceback}")
        self.kind, self.message = kind, message


class Interpreter:
    """A Python process that runs code on demand.

    Args:
        folder: where it runs; a place from which `hivg_hf` cannot be imported by accident.
        with_package: whether it can import `hivg_hf`. Without, the site packages are on its path but not set up as a
            site, so that the link of an editable install is not followed.
        environment: variables besides those of this process.
    """

    def __init__(self, folder: Path, with_package: bool, environment: dict[str, str]) -> None:
        if with_package:
            flags, path = [], str(ROOT)
        else:
            flags, path = ["-S"], sysconfig.get_path("purelib")
        self.process = subprocess.Popen(
            [sys.executable, *flags, "-c", SERVE],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str, **names: Any) -> Any:
        """Run code in which `names` are set; returns what it bound to the name `result`, by way of JSON.

        Raises:
            CodeFailedError: the code raised an error.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"code": code, "names": names}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the interpreter ended with status {self.process.wait()}"
        answer = json.loads(line)
        if "error" in answer:
            raise CodeFailedError(answer["error"], answer["message"], answer["traceback"])
        return answer["result"]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
