#!/usr/bin/env bash
# What CI runs: style, types, tests. Arguments go to pytest, for example
#   ./test.sh tests/experiment_config_test.py -k preset
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

python=${PYTHON:-python}
"$python" -m ruff check .
"$python" -m ruff format --check --quiet . || {
  echo 'Some files are not formatted; run: ruff format .' >&2
  exit 1
}
"$python" -m mypy

# More processes than two cores: tests of several processes often wait for them.
exec "$python" -m pytest --numprocesses=3 "$@"
