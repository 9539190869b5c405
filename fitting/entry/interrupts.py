"""Signals that tell a command to stop: they raise only where the exception will be heard.

While a library is being loaded it would not be: numpy, imported by an extension module, prints the
traceback of the exception and raises an ImportError instead; other libraries lose it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any

_AGAIN_SECONDS = 0.05
"""Seconds until a signal that came while a library was loaded is sent again."""
_LOADING = {ExtensionFileLoader.create_module.__code__, ExtensionFileLoader.exec_module.__code__}
_BEFORE: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
"""Python's default handlers; any other handler means that somebody else uses the signal."""

_postponed: list[threading.Timer] = []


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt with the signal's name, but not while a library is being loaded.

    A handler for `signal.signal`.

    Raises:
        KeyboardInterrupt: Now or soon.
    """
    while frame is not None:
        if frame.f_code in _LOADING:
            again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            _postponed.append(again)
            return
        frame = frame.f_back
    raise KeyboardInterrupt(signal.Signals(number).name)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM interrupt the body, unless somebody else handles them.

    Works in the main thread only.
    """
    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [s for s, before in _BEFORE.items() if signal.getsignal(s) is before]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for again in _postponed:
            again.cancel()
        _postponed.clear()
        for number in ours:
            if signal.getsignal(number) is interrupt:
                signal.signal(number, _BEFORE[number])


def leave_at_once_when_asked_again(code: int, say: Callable[[], None]) -> None:
    """From now on, let the next signal end the process without further clean-up.

    Args:
        code: The exit code.
        say: Called first.
    """

    def leave(_: int, __: FrameType | None) -> None:
        say()
        os._exit(code)

    if threading.current_thread() is threading.main_thread():
        for number in _BEFORE:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, leave)
