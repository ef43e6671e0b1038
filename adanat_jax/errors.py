"""What a user can mend, and with which status a program then ends."""

from collections.abc import Sequence
import os


def printable(text: str, longest: int | None = None) -> str:
  """Escapes what a terminal would obey, and shortens what would flood it.

  Names in other people's files may hold anything: control characters, halves
  of surrogate pairs, a megabyte.

  Args:
    text: the text.
    longest: number of characters of the result; None for no limit.
  """
  if longest is not None and len(text) > longest:
    text = text[: longest // 2] + '...' + text[-(longest // 4) :]
  if text.isprintable():
    return text
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: object, longest: int = 200) -> str:
  """A value as a message shows it: its `repr`, shortened."""
  try:
    whole = repr(value)
  except ValueError:
    # Python refuses to print integers of thousands of digits.
    return 'a very long value'
  return whole if len(whole) <= longest else f'{whole[:longest]}...'


class UserError(ValueError):
  """A mistake in what the user gave: a file, a field, a shape, a checkpoint.

  The message is one line that names the thing, the value that was given and
  what is allowed. `adanat_jax.main` prints it and exits with `status`; as a
  library it is an ordinary `ValueError`.
  """

  status = 2

  def __init__(self, message: str):
    """Escapes what cannot be printed; a `ConfigError` has several lines."""
    super().__init__('\n'.join(map(printable, message.split('\n'))))

  @property
  def problems(self) -> tuple[str, ...]:
    """The mistakes, a line each; one but for a `ConfigError`."""
    return (str(self),)


class ConfigError(UserError):
  """Everything that is wrong with a config, a line for each mistake."""

  def __init__(self, problems: Sequence[str]):
    """Takes at least one line."""
    super().__init__('\n'.join(problems))
    self._problems = tuple(map(printable, problems))

  @property
  def problems(self) -> tuple[str, ...]:
    """The mistakes, a line each."""
    return self._problems


class WriteError(UserError):
  """Something could not be written: the same command may succeed later."""

  status = os.EX_IOERR
