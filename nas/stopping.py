"""Signals that ask a command to stop: it ends in the same good order as after Ctrl-C, whichever it was."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, Self

__all__ = ["Stops"]

_ASKING: Final = ("SIGTERM", "SIGHUP")
"""What a scheduler or ``kill`` sends, and a terminal that is closed. What ``nohup`` set aside stays so."""


class Stops:
    """While entered, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, as SIGINT does.

    Attributes
    ----------
    number
        The signal that came first; None as long as none did. SIGINT is not noted: it is what is left.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._former: dict[int, Any] = {}

    def note(self, number: int) -> None:
        """Remember a signal that somebody else has dealt with, such as a training between two steps."""
        if self.number is None:
            self.number = number

    @property
    def code(self) -> int:
        """The exit code of a command that was stopped: 128 and the signal's number."""
        return 128 + (signal.SIGINT if self.number is None else self.number)

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        self.note(number)
        raise KeyboardInterrupt

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in _ASKING:
                number = getattr(signal, name)
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._former[number] = signal.signal(number, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
