"""Runs a stage, or all of them, of a config.

  python -m adanat_jax.main --config=configs/digits.py --workdir=runs/digits

`--config=FILE:preset` picks a preset, `--config.field=value` sets a field, and
`--config.mode=...` picks the stage: all, tokenizer, judges, prepare, nat,
policy, search, evaluate, report, compare, statistics or sample. The same
command continues a run that was stopped.

On several hosts the same command is started on each. On Cloud TPU, under SLURM
and Open MPI the processes find each other; elsewhere each gets
`--coordinator_address`, `--num_processes` and its own `--process_id`.
"""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import importlib
import os
import pathlib
import sys
import traceback
from typing import Any

from absl import app, flags, logging

from adanat_jax.errors import UserError, printable
from adanat_jax.experiment import (
  config as config_lib,
  field_rules,
  fields,
  workdir as workdir_lib,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import environment, files, processes

# What config.mode may be, and the module that does it: `check_config`
# refuses what cannot work, `run` does the rest; both take an `Experiment`.
STAGES = {
  'tokenizer': 'adanat_jax.stages.tokenizer',
  'judges': 'adanat_jax.stages.judges',
  'prepare': 'adanat_jax.stages.prepare',
  'nat': 'adanat_jax.stages.nat',
  'policy': 'adanat_jax.stages.policy',
  'search': 'adanat_jax.stages.search',
  'evaluate': 'adanat_jax.stages.evaluate',
  'report': 'adanat_jax.stages.report',
  'compare': 'adanat_jax.stages.compare',
  'statistics': 'adanat_jax.stages.statistics',
  'sample': 'adanat_jax.stages.sample',
}
# What mode 'all' runs, in this order: on the digits, and on other images.
STUDY = ('tokenizer', 'judges', 'nat', 'policy', 'evaluate', 'report')
BENCHMARK = ('tokenizer', 'prepare', 'nat', 'policy', 'evaluate')
# What mode 'compare' runs: the last one has its own networks and policies.
COMPARISON = ('tokenizer', 'judges', 'compare')

_CONFIG = config_lib.define_flag()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where everything of this run is kept and found again.'
)
_CACHE = flags.DEFINE_enum(
  'jax_cache', 'on', ['on', 'off'], 'Keep compiled programs between runs.'
)
_CACHE_DIR = flags.DEFINE_string(
  'jax_cache_dir',
  os.environ.get('JAX_COMPILATION_CACHE_DIR', environment.CACHE_DIRECTORY),
  'Where to keep them; nobody else may be able to write there.',
)
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed',
  'auto',
  processes.MODES,
  'Whether several processes work together: auto connects them where a cluster'
  ' is found or an address is given, local is one process that behaves as on a'
  ' cluster.',
)
_COORDINATOR_ADDRESS = flags.DEFINE_string(
  'coordinator_address', None, 'HOST:PORT at which process 0 is reached.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many processes work together.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Which of them this one is, counted from 0.'
)
_DISTRIBUTED_TIMEOUT = flags.DEFINE_float(
  'distributed_timeout',
  processes.DEFAULT_TIMEOUT,
  'Seconds to wait for the other processes; one that dies later is noticed'
  ' within a third of it.',
)


def main(argv: Sequence[str]) -> None:
  """Connects the processes, claims the workdir, and runs config.mode."""
  del argv  # parse_flags lets nothing through that is not a flag.
  if _CONFIG.value is None or not _WORKDIR.value:
    missing = '--workdir=DIR' if _CONFIG.value else '--config=FILE'
    raise UserError(
      f'{missing} is missing; for example: python -m adanat_jax.main'
      ' --config=configs/digits.py --workdir=runs/digits'
    )
  if not _WORKDIR.value.strip() or _WORKDIR.value.startswith('-'):
    raise UserError(
      f'--workdir={_WORKDIR.value!r}: a directory is needed; for one whose name'
      ' begins with a dash give ./ before it'
    )
  if '://' in _WORKDIR.value:
    raise UserError(
      f'--workdir={_WORKDIR.value}: a directory is needed; mount the bucket'
      ' (gcsfuse) or use a disk that all hosts share (Filestore, NFS)'
    )
  if not fields.path().accepts(_WORKDIR.value):
    raise UserError(
      f'--workdir={printable(_WORKDIR.value, 200)} is no name that a directory'
      ' can have'
    )
  config = _CONFIG.value
  names = _names_of_stages(config)
  # All before anything asks JAX for a device.
  environment.keep_memory()
  environment.set_cache(_CACHE_DIR.value if _CACHE.value == 'on' else None)
  processes.start(
    _DISTRIBUTED.value,
    coordinator_address=_COORDINATOR_ADDRESS.value,
    num_processes=_NUM_PROCESSES.value,
    process_id=_PROCESS_ID.value,
    timeout=_DISTRIBUTED_TIMEOUT.value,
    facts={f'config.{k}': v for k, v in config_lib.fields(config)},
  )
  workdir = pathlib.Path(os.path.expanduser(_WORKDIR.value))
  stages = [importlib.import_module(STAGES[name]) for name in names]
  # All of them before the first: nobody waits hours for the last one's no.
  Experiment(config, workdir).check(
    workdir_lib.problems, *(stage.check_config for stage in stages)
  )
  with workdir_lib.claimed(
    workdir, config, config_lib.overrides_of(), config_lib.source_of()
  ):
    for name, stage in zip(names, stages, strict=True):
      # One for each stage: its networks leave the devices with it.
      experiment = Experiment(config, workdir)
      with contextlib.ExitStack() as stack:
        _hold(stack, experiment, name)
        stage.run(experiment)
  # JAX waits for the others at exit too, but not longer than the time-out.
  processes.barrier()


def _names_of_stages(config: Any) -> tuple[str, ...]:
  """The stages that a config asks for, in their order."""
  decisive = {name: field_rules.RULES[name] for name in ('mode', 'data.source')}
  fields.check(config, decisive, required=decisive)
  if config.mode == 'all':
    return STUDY if config.data.source == 'digits' else BENCHMARK
  return COMPARISON if config.mode == 'compare' else (config.mode,)


def _hold(
  stack: contextlib.ExitStack, experiment: Experiment, name: str
) -> None:
  """Refuses a stage that another process on this machine is running."""
  if name == 'sample':
    return  # It only reads.
  place = experiment.workdir
  if name == 'prepare':
    place = experiment.prepared_directory  # Workdirs may share it.
  held = files.only_one(
    place,
    name,
    f'{place}: another process on this machine is running stage {name} in this'
    ' directory; wait for it to end, or use another directory',
  )
  processes.from_first(lambda: stack.enter_context(held))


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses the flags, and keeps libraries quiet unless `-v` was given."""
  rest = config_lib.parse_flags(argv)
  if flags.FLAGS['verbosity'].using_default_value:
    # Libraries tell much at INFO; our own lines do not go through this log.
    # absl raises an unset verbosity to INFO right after parsing.
    logging.set_verbosity(logging.WARNING)
  return rest


def run() -> None:
  """Runs `main` on the command line; each of a user's mistakes is one line."""
  try:
    app.run(main, flags_parser=_parse)
  except UserError as error:
    for problem in error.problems:
      print('adanat_jax:', *problem.split(), file=sys.stderr)
    processes.leave(error.status)
  except KeyboardInterrupt:
    # Inside a training loop Ctrl-C saves first and does not come to here.
    print(
      'adanat_jax: interrupted; the same command continues the run',
      file=sys.stderr,
    )
    processes.leave(130)
  except Exception:
    if not processes.is_shared():
      raise
    traceback.print_exc()
    print(
      'adanat_jax: this process cannot go on, and the others cannot without it;'
      ' above is why, often that another one has died. Start the same command'
      ' everywhere again',
      file=sys.stderr,
    )
    processes.leave(1)


if __name__ == '__main__':
  run()
