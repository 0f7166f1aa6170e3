"""How long it takes to pause one run and let another go on, without all that happens in between."""

import time

from rapidfireai.workers.fiber import Fiber
from rapidfireai.workers.process_state import ProcessState


def handoffs_s(num: int) -> list[float]:
    """Seconds from one run's pause until another's return from its own, `num` times.

    Two fibers take turns as runs do at chunk boundaries: the one that pauses leaves its set of
    process-wide state, the other enters its own, the baton goes over.
    """
    taken: list[float] = []

    def body(fiber: Fiber[float, float]) -> float:
        while True:
            paused_at = fiber.pause(time.perf_counter())
            if paused_at is not None:
                taken.append(time.perf_counter() - paused_at)

    runs = [(Fiber(body, f"run-{number}"), ProcessState()) for number in range(2)]
    for fiber, state in runs:
        with state:
            fiber.resume()
    paused_at = None
    for number in range(num + 1):
        fiber, state = runs[number % 2]
        state.enter()
        paused_at = fiber.resume(paused_at)
        state.leave()
    for fiber, _ in runs:
        fiber.close()
    return taken
