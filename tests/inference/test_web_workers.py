"""Questions with a time limit: those that overrun are given up, and what follows them is answered."""

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from hivg_hf.inference import web_workers
from hivg_hf.inference.web_workers import GroundingWorkers


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def answering(release: threading.Event) -> Any:
    def answer(pipe: Any, question: str) -> Any:
        if question == "stuck":
            release.wait(30)
        if question == "faulty":
            raise KeyError("<b>inner</b>")
        return question, id(pipe.processor)

    return answer


def test_stuck_questions_give_their_place_back_with_a_processor_of_its_own(release: threading.Event) -> None:
    workers = GroundingWorkers(SimpleNamespace(processor=[]), answering(release), workers=1, seconds=0.2)
    _, before = workers.ask("first")
    start = time.perf_counter()
    assert workers.ask("stuck")[3].startswith("⚠ This took longer than 0.2 seconds")
    assert time.perf_counter() - start < 2
    answer, after = workers.ask("next")
    assert answer == "next"
    assert before != after  # tokenizers fail when two threads use one
    assert workers.ask("again") == ("again", after)


def test_a_page_full_of_stuck_questions_says_so_until_they_end(release: threading.Event) -> None:
    workers = GroundingWorkers(SimpleNamespace(processor=[]), answering(release), workers=2, seconds=0.05)
    for place in range(web_workers.MOST_STUCK):
        assert workers.is_healthy, place
        workers.ask("stuck")
    assert not workers.is_healthy
    assert workers.ask("next") == (None, [], [], "⚠ The page is busy with questions that do not end: try again later.")
    release.set()
    deadline = time.monotonic() + 5
    while not workers.is_healthy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert workers.ask("next")[0] == "next"


def test_no_more_questions_at_once_than_workers(release: threading.Event) -> None:
    running, most, lock = [], [], threading.Lock()

    def answer(pipe: Any, question: str) -> str:
        with lock:
            running.append(question)
            most.append(len(running))
        time.sleep(0.02)
        running.remove(question)
        return question

    workers = GroundingWorkers(SimpleNamespace(processor=[]), answer, workers=2, seconds=5)
    answers: list[str] = []
    threads = [threading.Thread(target=lambda n=n: answers.append(workers.ask(str(n)))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [str(n) for n in range(8)]
    assert max(most) == 2


def test_faults_are_a_sentence_and_stay_in_the_log(release: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    workers = GroundingWorkers(SimpleNamespace(processor=[]), answering(release), workers=1, seconds=5)
    message = workers.ask("faulty")[3]
    assert message == "⚠ The picture and these expressions could not be processed; the server's log says why."
    assert "inner" in caplog.text
    assert workers.ask("next")[0] == "next"


@pytest.mark.parametrize(("workers", "seconds"), [(0, 1), (-1, 1), (1, 0), (1, float("nan")), (1, -5)])
def test_limits_that_answer_nothing_are_refused(workers: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="Expected at least 1 worker and a time limit above 0"):
        GroundingWorkers(SimpleNamespace(processor=[]), print, workers, seconds)
