"""Being asked to stop: SIGTERM and Ctrl-C as a flag, and how a run leaves."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(SystemExit):
  """The run was asked to stop, has saved, and leaves.

  Its exit code is 143 after SIGTERM and 130 after Ctrl-C. It passes through
  `except Exception`, so that no stage goes on by mistake.
  """

  def __init__(self, signal_number: int, step: int):
    """Keeps what asked for the stop, and how many steps were finished."""
    super().__init__(128 + signal_number)
    self.signal_number = signal_number
    self.step = step


class StopSignals:
  """Turns SIGTERM and Ctrl-C into a flag that a loop reads between steps.

  Only the first signal is held back. The second meets the earlier handlers,
  which are also given back at the end: it ends the process as it would have
  without us. Outside the main thread Python allows no handlers, and nothing is
  done.

  Attributes:
    requested: number of the signal that came, 0 while none has.
  """

  def __init__(self) -> None:
    self.requested = 0
    self._earlier: dict[int, Any] = {}

  def __enter__(self) -> 'StopSignals':
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._earlier[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_: object) -> None:
    self._give_back()

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del frame
    self.requested = number
    self._give_back()

  def _give_back(self) -> None:
    while self._earlier:
      number, handler = self._earlier.popitem()
      # None: a handler that was not installed from Python.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
