"""What a user can mend, and with which status a program then ends."""

from collections.abc import Sequence
import os


class UserError(ValueError):
  """A mistake in what the user gave: a file, a field, a shape, a checkpoint.

  The message is one line that names the thing, the value that was given and
  what is allowed. `adanat_jax.main` prints it and exits with `status`; as a
  library it is an ordinary `ValueError`.
  """

  status = 2

  @property
  def problems(self) -> tuple[str, ...]:
    """The mistakes, a line each; one but for a `ConfigError`."""
    return (str(self),)


class ConfigError(UserError):
  """Everything that is wrong with a config, a line for each mistake."""

  def __init__(self, problems: Sequence[str]):
    """Takes at least one line."""
    super().__init__('\n'.join(problems))
    self._problems = tuple(problems)

  @property
  def problems(self) -> tuple[str, ...]:
    """The mistakes, a line each."""
    return self._problems


class WriteError(UserError):
  """Something could not be written: the same command may succeed later."""

  status = os.EX_IOERR
