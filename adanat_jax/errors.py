"""What a user can mend, and with which status a program then ends."""

import os


class UserError(ValueError):
  """A mistake in what the user gave: a file, a field, a shape, a checkpoint.

  The message is one line that names the thing, the value that was given and
  what is allowed. `adanat_jax.main` prints it and exits with `status`; as a
  library it is an ordinary `ValueError`.
  """

  status = 2


class WriteError(UserError):
  """Something could not be written: the same command may succeed later."""

  status = os.EX_IOERR
