"""Shows the package in half a minute: `python -m adanat_jax.demo`."""
