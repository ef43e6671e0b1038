"""Where a config and a workdir become objects."""
