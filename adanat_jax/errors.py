"""The one exception that stands for a mistake a user can mend."""


class UserError(ValueError):
  """A mistake in what the user gave: a file, a field, a shape, a checkpoint.

  The message is one line that names the thing, the value that was given and
  what is allowed. `adanat_jax.main` prints it and exits with status 2; as a
  library it is an ordinary `ValueError`.
  """
