"""Answers questions in threads with a time limit, so that a question that does not end does not stop the page."""

import copy
import html
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

logger = logging.getLogger(__name__)

# A thread cannot be ended from outside. Those that overran keep their memory until they end; beyond this many the
# page answers nothing more, and its health check says so, for whatever started it to start it again.
MOST_STUCK = 8


class GroundingWorkers:
    """Copies of a pipeline, each of which answers one question at a time.

    Args:
        pipe: The pipeline; model weights are shared, processors are not (tokenizers fail when two threads use one).
        answer: Called with a pipeline and the values of `ask`.
        workers: How many questions are answered at once.
        seconds: The time a question may take.
    """

    def __init__(self, pipe: Any, answer: Callable[..., Any], workers: int = 2, seconds: float = 60.0):
        if workers < 1 or not seconds > 0:
            raise ValueError(f"Expected at least 1 worker and a time limit above 0, got {workers} and {seconds}.")
        self.workers = workers
        self.seconds = seconds
        self._pipe = pipe
        self._answer = answer
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(workers):
            self._free.put(self._copy())
        self._stuck: set[Future[Any]] = set()

    @property
    def is_healthy(self) -> bool:
        """Whether further questions are answered."""
        self._stuck = {future for future in self._stuck if not future.done()}
        return len(self._stuck) < MOST_STUCK

    def ask(self, *values: Any) -> Any:
        """What `answer` returns, or, after the time limit, `unanswered` with a sentence."""
        if not self.is_healthy:
            return unanswered("The page is busy with questions that do not end: try again later.")
        try:
            pipe = self._free.get(timeout=self.seconds)
        except queue.Empty:
            return unanswered("The page is busy: try again in a few seconds.")
        future: Future[Any] = Future()
        threading.Thread(target=self._run, args=(future, pipe, values), daemon=True).start()
        try:
            return future.result(self.seconds)
        except TimeoutError:
            if not future.done():
                self._stuck.add(future)
                pipe = self._copy()  # the stuck thread keeps the other
            return unanswered(
                f"This took longer than {self.seconds:g} seconds: send a smaller picture or fewer expressions."
            )
        except Exception:
            logger.exception("A question of the page could not be answered")
            return unanswered("The picture and these expressions could not be processed; the server's log says why.")
        finally:
            self._free.put(pipe)

    def _run(self, future: "Future[Any]", pipe: Any, values: tuple[Any, ...]) -> None:
        try:
            future.set_result(self._answer(pipe, *values))
        except BaseException as error:
            future.set_exception(error)

    def _copy(self) -> Any:
        pipe = copy.copy(self._pipe)
        if hasattr(pipe, "processor"):
            pipe.processor = copy.deepcopy(self._pipe.processor)
        return pipe


def unanswered(sentence: str) -> tuple[None, list[Any], list[Any], str]:
    """The four outputs of the page where there is only a sentence."""
    return None, [], [], f"⚠ {html.escape(sentence, quote=False)}"
