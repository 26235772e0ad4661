"""Runs of several phases: resumed after kills, refused where they must be, kept only where they gain."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from training_helpers import folder_bytes, run_staged, tiny_recipe

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model, tiny_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def unbroken_run(tiny_checkpoint, tmp_path_factory):
    """A run that nobody disturbs, and how long it takes."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    started = time.monotonic()
    run_staged(tiny_recipe(tiny_checkpoint), str(folder))
    return folder, time.monotonic() - started


@pytest.fixture(scope="session")
def forkserver():
    """Processes that start quickly: the libraries are imported once, in a server that forks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hivg_hf.staged_training", "hivg_hf.data.refshapes", "training_helpers"])
    return context


def kill_and_resume(context, recipe, folder, kills, longest, seed):
    """Start the run again and again; kill it `kills` times at random moments. Returns the kills that hit it alive."""
    rng, hits = random.Random(seed), 0
    while True:
        process = context.Process(target=run_staged, args=(recipe, str(folder)))
        process.start()
        if hits < kills:
            process.join(timeout=rng.uniform(0.05, 1.0) * longest / 2)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                hits += 1
        process.join()
        if process.exitcode == 0:
            return hits
        assert process.exitcode == -signal.SIGKILL


def test_a_killed_and_resumed_run_ends_with_the_same_weights(forkserver, tiny_checkpoint, unbroken_run, tmp_path):
    reference, duration = unbroken_run
    hits = kill_and_resume(forkserver, tiny_recipe(tiny_checkpoint), tmp_path / "run", 3, duration, seed=1)
    assert hits == 3
    assert folder_bytes(tmp_path / "run") == folder_bytes(reference)
