"""A run of the command that can die at any instant, and runs that take turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random


class Crash(BaseException):
    """The process is gone. Whatever Python would still clean up must have no effect."""


class Violation(BaseException):
    """An invariant does not hold; no code under test may catch it."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
        self.text = text

    def __reduce__(self) -> tuple[type[Violation], tuple[str, str]]:
        return (Violation, (self.invariant, self.text))


@dataclass(slots=True, eq=False)
class Process:
    """One run; `number` counts them within a life."""

    number: int
    dead: bool = False
    outcome: str = ""
    """How it ended: `settled`, `complete`, `incomplete`, `crash`, or an error's name."""


class Turns:
    """Lets one of several threads go on at a time; who it is only the seed says."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._gates: list[threading.Lock] = []
        self._alive: list[int] = []
        self._me = threading.local()

    def run(self, bodies: Sequence[Callable[[], None]]) -> None:
        """Run them all to their ends. None of them may raise."""
        if len(bodies) == 1:
            bodies[0]()
            return
        self._gates = [threading.Lock() for _ in bodies]
        self._alive = list(range(len(bodies)))
        for gate in self._gates:
            gate.acquire()
        threads = [
            threading.Thread(target=self._body, args=(number, body), daemon=True)
            for number, body in enumerate(bodies)
        ]
        for thread in threads:
            thread.start()
        self._gates[self._rng.choice(self._alive)].release()
        for thread in threads:
            thread.join()
        self._gates = []

    def switch(self, chance: float) -> bool:
        """Perhaps let another one go on; whether there was another one."""
        me = getattr(self._me, "number", None)
        if me is None or len(self._alive) < 2:
            return False
        if self._rng.random() < chance:
            other = self._rng.choice([number for number in self._alive if number != me])
            self._gates[other].release()
            self._gates[me].acquire()
        return True

    def _body(self, number: int, body: Callable[[], None]) -> None:
        self._gates[number].acquire()
        self._me.number = number
        try:
            body()
        finally:
            self._alive.remove(number)
            if self._alive:
                self._gates[self._rng.choice(self._alive)].release()
