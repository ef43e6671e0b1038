"""Runs a stage, or all of them, of a config.

  adanat --config=digits:tiny --workdir=runs/first

`--config=NAME:preset` picks a preset, `--config.field=value` sets a field, and
`--config.mode=...` picks the stage: all, tokenizer, judges, prepare, nat,
policy, search, evaluate, report, compare, suite, statistics, sample, edit,
export, laboratory or discover. The same command continues a run that was
stopped. `python -m adanat_jax.main` is the same program.

On several hosts the same command is started on each. On Cloud TPU, under SLURM
and Open MPI the processes find each other; elsewhere each gets
`--coordinator_address`, `--num_processes` and its own `--process_id`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import importlib
import os
import pathlib
import signal
import sys
import textwrap
import traceback
from typing import Any

# XLA's alarms about slow compilation are errors to its log; no user can act on
# them. It reads this when it is loaded; FATAL lines are still shown.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from absl import app, flags, logging

from adanat_jax import __version__
from adanat_jax.errors import ConfigError, UserError, printable
from adanat_jax.experiment import (
  config as config_lib,
  config_help,
  field_rules,
  fields,
  workdir as workdir_lib,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import environment, files, journal, processes

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
  'suite': 'adanat_jax.stages.suite',
  'statistics': 'adanat_jax.stages.statistics',
  'sample': 'adanat_jax.stages.sample',
  'edit': 'adanat_jax.stages.edit',
  'export': 'adanat_jax.stages.export',
  'laboratory': 'adanat_jax.stages.laboratory',
  'discover': 'adanat_jax.stages.discover',
}
# What mode 'all' runs, in this order: on the digits, and on other images; by
# the study of these a report and a generator to share follow.
STUDY = ('tokenizer', 'judges', 'nat', 'policy', 'evaluate', 'report')
BENCHMARK = ('tokenizer', 'judges', 'prepare', 'nat', 'policy', 'evaluate')
OWN_IMAGES = (*BENCHMARK, 'report', 'export')
# What mode 'compare' runs: the last one has its own networks and policies.
COMPARISON = ('tokenizer', 'judges', 'compare')
# What mode 'suite' runs, on the digits and on other images; mode 'frontier'
# also trains policies and searches tables.
SUITE = ('tokenizer', 'judges', 'nat', 'suite')
OWN_SUITE = ('tokenizer', 'judges', 'prepare', 'nat', 'suite')
# What mode 'discover' runs: the first trains the encoder of pictures, if need
# be.
DISCOVERY = ('judges', 'discover')

# Modes that change nothing in the workdir but pictures.
_READING = ('sample', 'edit')

_CONFIG = config_lib.define_flag()
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Where everything of this run is kept and found again; runs/NAME by default.',
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
  """Connects the processes, claims the workdir, and runs config.mode.

  `argv` holds what is wrong with the flags, after the program's name.
  """
  problems = [*argv[1:], *_problems_of_workdir()]
  config = _CONFIG.value
  cluster: dict[str, Any] = dict(
    mode=_DISTRIBUTED.value,
    coordinator_address=_COORDINATOR_ADDRESS.value,
    num_processes=_NUM_PROCESSES.value,
    process_id=_PROCESS_ID.value,
    timeout=_DISTRIBUTED_TIMEOUT.value,
  )
  # All before anything asks JAX for a device.
  environment.keep_memory()
  try:
    environment.set_cache(_CACHE_DIR.value if _CACHE.value == 'on' else None)
  except UserError as error:
    problems += error.problems
  if config is None or (problems and _is_cluster(cluster, problems)):
    raise ConfigError(problems)
  processes.start(
    **cluster, facts={f'config.{k}': v for k, v in config_lib.fields(config)}
  )
  environment.leave_cache_to_one()
  workdir = config_lib.default_workdir(config_lib.source_of())
  if _WORKDIR.value is not None:
    workdir = pathlib.Path(os.path.expanduser(_WORKDIR.value))
  names = _names_of_stages(config)
  stages = [importlib.import_module(STAGES[name]) for name in names]
  try:
    counted = workdir_lib.counted(Experiment(config, workdir))
    config.update_from_flattened_dict(counted)
  except UserError as error:
    problems += error.problems
  # All of them before the first: nobody waits hours for the last one's no.
  Experiment(config, workdir).check(
    lambda _: problems,
    workdir_lib.problems,
    *(stage.check_config for stage in stages),
    reads=_decisive(config),
  )
  if _WORKDIR.value is None:
    processes.say(f'--workdir is left out: this run is kept in {workdir}')
  with workdir_lib.claimed(
    workdir, config, config_lib.overrides_of(), config_lib.source_of()
  ):
    if config.mode not in _READING:
      for name, warning in Experiment(config, workdir).warnings():
        journal.warn(name, [warning])
    for name, stage in zip(names, stages, strict=True):
      # One for each stage: its networks leave the devices with it.
      experiment = Experiment(config, workdir)
      with contextlib.ExitStack() as stack:
        _hold(stack, experiment, name)
        stage.run(experiment)
  # JAX waits for the others at exit too, but not longer than the time-out.
  processes.barrier()


def _is_cluster(cluster: Mapping[str, Any], problems: list[str]) -> bool:
  """Whether other processes are to be met, or flags about them are wrong."""
  try:
    return processes.find_cluster(**cluster) is not None
  except UserError as error:
    problems += error.problems
    return True


def _problems_of_workdir() -> Iterator[str]:
  """Says why `--workdir` is no directory."""
  given = _WORKDIR.value
  if given is None:
    return
  if not given.strip() or given.startswith('-'):
    yield (
      f'--workdir={given!r}: a directory is needed; for one whose name begins'
      ' with a dash give ./ before it'
    )
  if '://' in given:
    yield (
      f'--workdir={given}: a directory is needed; mount the bucket (gcsfuse) or'
      ' use a disk that all hosts share (Filestore, NFS)'
    )
  if not fields.path().accepts(given):
    yield (
      f'--workdir={printable(given, 200)} is no name that a directory can have'
    )


def _decisive(config: Any) -> tuple[str, ...]:
  """The fields that choose the stages."""
  # A config of the laboratory alone measures no images.
  protocol = ('evaluate.protocol',) if config.get('mode') == 'all' else ()
  return ('mode', 'data.source', *protocol)


def _names_of_stages(config: Any) -> tuple[str, ...]:
  """The stages that a config asks for, in their order; none if it is wrong."""
  rules = {name: field_rules.RULES[name] for name in _decisive(config)}
  try:
    fields.check(config, rules, required=rules)
  except ConfigError:
    return ()
  if config.mode == 'all':
    if config.data.source == 'digits':
      return STUDY
    return OWN_IMAGES if config.evaluate.protocol == 'study' else BENCHMARK
  suite = SUITE if config.data.source == 'digits' else OWN_SUITE
  several = {
    'compare': COMPARISON,
    'suite': suite,
    'frontier': (*suite[:-1], 'policy', 'search', 'suite'),
    'discover': DISCOVERY,
  }
  return several.get(config.mode, (config.mode,))


def _hold(
  stack: contextlib.ExitStack, experiment: Experiment, name: str
) -> None:
  """Refuses a stage that another process on this machine is running."""
  if name in _READING:
    return
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
  """Parses the flags; returns the program's name and all that is wrong.

  Libraries stay quiet unless `-v` was given.
  """
  asked = set(argv[1:]) & {'--help', '-help', '-h', '--version'}
  argv = [argument for argument in argv if argument not in asked]
  problems: list[str] = []
  try:
    config_lib.parse_flags(argv)
  except UserError as error:
    problems += error.problems
  if asked and not problems:
    # Whoever reads the first lines alone, `| head`, gets no traceback.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print(f'adanat_jax {__version__}' if '--version' in asked else _help())
    sys.exit()
  if config_lib.config_argument(argv) is None:
    problems.append(
      '--config=NAME is missing; for example:'
      f' {config_lib.rerun("--config=digits")}. There is'
      f' {", ".join(config_lib.known_names())}, or the path of a .py file'
    )
  if flags.FLAGS['verbosity'].using_default_value:
    # Libraries tell much at INFO; our own lines do not go through this log.
    # absl raises an unset verbosity to INFO right after parsing.
    logging.set_verbosity(logging.WARNING)
  return [argv[0], *problems]


def _help() -> str:
  """What may be given; of a config that is given, its fields."""
  if _CONFIG.value is not None:
    source = config_lib.source_of()
    values = dict(config_lib.fields(_CONFIG.value))
    return (
      f'{config_help.about(source)}\n\n{config_help.fields(values, source)}'
    )
  here = flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])
  configs = {
    name: config_help.about(name).partition('\n')[0]
    for name in config_lib.known_names()
  }
  return '\n'.join(
    [
      *(__doc__.rstrip(), '', 'flags:'),
      *_table({f'--{f.name}': f.help for f in [flags.FLAGS['config'], *here]}),
      *('', 'configs; --config=NAME --help shows the fields of one:'),
      *_table(configs),
    ]
  )


def _table(rows: Mapping[str, str]) -> Iterator[str]:
  """Lines of names with what they are, beside each other."""
  indent = 4 + max(map(len, rows))
  for name, text in rows.items():
    yield textwrap.fill(
      f'  {name:{indent - 2}}{text}', 80, subsequent_indent=' ' * indent
    )


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
