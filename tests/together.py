"""Calls at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any


def together(work: Callable[[Any], Any], arguments: Iterable[Any]) -> None:
    """Call ``work`` with each argument in a thread of its own, and wait for all."""
    threads = [threading.Thread(target=work, args=(one,)) for one in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
