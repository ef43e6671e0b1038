"""What a user runs: one module a stage, each with `run(config, workdir)`."""
