"""What a user runs: a module for each `config.mode`.

Each has two functions of an `Experiment`. `check_config` raises ConfigError for
values with which its work cannot be done. `run` checks them too, does what is
not done yet, and leaves it in the workdir; it raises UserError, naming the
stage to run first or the field to set, for whatever is missing.
"""
