"""Runs a stage, or all of them, of a config.

  python -m adanat_jax.main --config=configs/digits.py --workdir=runs/digits

`--config=FILE:preset` picks a preset, `--config.field=value` sets a field, and
`--config.mode=...` picks the stage: all, tokenizer, judges, nat, policy,
evaluate, report or sample. The same command continues a run that was stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
import importlib
import os
import pathlib
import sys

from absl import app, flags, logging

from adanat_jax import (
  compile_cache,
  config as config_lib,
  config_rules,
  workdir as workdir_lib,
)
from adanat_jax.errors import UserError

# What config.mode may be, and the module whose run(config, workdir) does it.
STAGES = {
  'tokenizer': 'adanat_jax.stages.tokenizer',
  'judges': 'adanat_jax.stages.judges',
  'nat': 'adanat_jax.stages.nat',
  'policy': 'adanat_jax.stages.policy',
  'evaluate': 'adanat_jax.stages.evaluate',
  'report': 'adanat_jax.stages.report',
  'sample': 'adanat_jax.stages.sample',
}
# What mode 'all' runs, in this order.
PIPELINE = ('tokenizer', 'judges', 'nat', 'policy', 'evaluate', 'report')

_CONFIG = config_lib.define_flag()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where everything of this run is kept and found again.'
)
_CACHE = flags.DEFINE_enum(
  'jax_cache', 'on', ['on', 'off'], 'Keep compiled programs between runs.'
)
_CACHE_DIR = flags.DEFINE_string(
  'jax_cache_dir',
  os.environ.get('JAX_COMPILATION_CACHE_DIR', compile_cache.DEFAULT_DIRECTORY),
  'Where to keep them; nobody else may be able to write there.',
)


def main(argv: Sequence[str]) -> None:
  """Claims the workdir and runs the stages that config.mode names."""
  del argv  # parse_flags lets nothing through that is not a flag.
  if _CONFIG.value is None or not _WORKDIR.value:
    missing = '--workdir=DIR' if _CONFIG.value else '--config=FILE'
    raise UserError(
      f'{missing} is missing; for example: python -m adanat_jax.main'
      ' --config=configs/digits.py --workdir=runs/digits'
    )
  if _CACHE.value == 'on':
    compile_cache.enable(_CACHE_DIR.value)
  config = _CONFIG.value
  config_rules.check(config, {'mode': config_rules.choice('all', *STAGES)})
  workdir = pathlib.Path(_WORKDIR.value)
  workdir_lib.claim(
    workdir, config, config_lib.overrides_of(), config_lib.source_of()
  )
  for name in PIPELINE if config.mode == 'all' else (config.mode,):
    importlib.import_module(STAGES[name]).run(config, workdir)


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses the flags, and keeps libraries quiet unless `-v` was given."""
  rest = config_lib.parse_flags(argv)
  if flags.FLAGS['verbosity'].using_default_value:
    # Libraries tell much at INFO; our own lines do not go through this log.
    # absl raises an unset verbosity to INFO right after parsing.
    logging.set_verbosity(logging.WARNING)
  return rest


def run() -> None:
  """Runs `main` on the command line; users' mistakes are one line, status 2."""
  try:
    app.run(main, flags_parser=_parse)
  except UserError as error:
    print('adanat_jax:', *str(error).split(), file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    # Inside a training loop Ctrl-C saves first and does not come to here.
    print('adanat_jax: interrupted; the same command goes on', file=sys.stderr)
    sys.exit(130)


if __name__ == '__main__':
  run()
