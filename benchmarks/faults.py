"""Faults, tried on a training in two processes: killed, starved, damaged.

  python benchmarks/faults.py [--kills=20] [--seed=0] [--root=DIRECTORY]

A small NAT is trained on the digits by two processes of this machine, once
without disturbance. Then one fault after the other is tried on the same
training, the same command is started again, and everything that it leaves is
compared with the undisturbed run: all leaves of the last checkpoint, all rows
of metrics, the marker. The result is a Markdown table; docs/reliability.md has
one. A full disk of its own needs root, and is left out without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags, logging
from laboratory import TIMEOUT, Laboratory, Launch, Outcome, Start
import numpy as np

from adanat_jax.runtime import handshake

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = 'configs/digits.py:tiny'
FIELDS = {
  'nat.num_steps': 30,
  'nat.width': 16,
  'nat.depth': 2,
  'nat.num_heads': 2,
  'save_every': 4,
  'log_every': 1,
  'tensorboard': False,
}
# Root ignores modes; this takes that privilege away, and no other.
HEED_MODES = ('setpriv', '--bounding-set=-dac_override')


def simple_faults(lab: Laboratory) -> Iterator[Outcome]:
  """Tries what needs no rights."""
  stage = lab.stage
  limit = largest(lab.newest(lab.whole)).stat().st_size // 2
  yield lab.spoil(
    f'no file may grow over {limit / 1000:.0f} kB',
    'limit',
    Start(file_limit=limit),
  )
  limit = largest(lab.newest(lab.whole), 'ocdbt.process_1').stat().st_size // 2
  yield lab.spoil(
    f'no file of process 1 may grow over {limit / 1000:.1f} kB',
    'limit-1',
    Start(file_limit=limit, limited=(1,)),
  )
  yield lab.spoil(
    'the newest checkpoint: largest file cut in half',
    'cut',
    spoil=lambda w: change(largest(lab.newest(w)), lambda x: x[: len(x) // 2]),
  )

  def block(workdir: pathlib.Path) -> None:
    (workdir / stage).rename(workdir / 'aside')
    (workdir / stage).write_text('in the way')

  def unblock(workdir: pathlib.Path) -> None:
    (workdir / stage).unlink()
    (workdir / 'aside').rename(workdir / stage)

  yield lab.spoil(
    "a file where the stage's directory should be",
    'file',
    spoil=block,
    mend=unblock,
  )


def more_faults(lab: Laboratory) -> Iterator[Outcome]:
  """Tries the rest."""
  newest, stage = lab.newest, lab.stage
  one_bit = lambda x: x[:99] + bytes([x[99] ^ 4]) + x[100:]
  for fault, name, spoil in (
    (
      'the newest checkpoint: one bit of the largest file',
      'bit',
      lambda w: change(largest(newest(w)), one_bit),
    ),
    (
      'the newest checkpoint: meta emptied',
      'meta',
      lambda w: change(newest(w) / 'meta/metadata', lambda _: b''),
    ),
    (
      'the newest checkpoint: a file gone',
      'gone',
      lambda w: (newest(w) / 'state/_METADATA').unlink(),
    ),
    (
      'the newest checkpoint: an empty directory',
      'empty',
      lambda w: (
        shutil.rmtree(newest(w) / 'state'),
        shutil.rmtree(newest(w) / 'meta'),
      ),
    ),
    (
      'all checkpoints: largest file cut in half',
      'all',
      lambda w: [
        change(largest(path), lambda x: x[: len(x) // 2])
        for path in (w / stage / 'checkpoints').glob('[0-9]*')
      ],
    ),
    (
      'metrics.jsonl ends in half a row',
      'rows',
      lambda w: change(
        w / stage / 'metrics.jsonl', lambda x: x + b'{"step": 25, "lo'
      ),
    ),
  ):
    yield lab.spoil(fault, name, spoil=spoil)
  yield lab.spoil('process 1 is not started', 'missing', Start(only=(0,)))
  yield lab.spoil('process 0 is not started', 'headless', Start(only=(1,)))
  yield lab.spoil(
    'process 0 has another config',
    'config',
    Start(fields=('--config.nat.batch_size=64',)),
  )
  elsewhere = lab.root / 'elsewhere'
  yield lab.spoil(
    'a workdir that the processes do not share',
    'shared',
    Start(workdirs=(lab.root / 'shared', elsewhere)),
  )


def no_permission(lab: Laboratory) -> Outcome:
  """Tries a directory that may not be written."""
  path = lambda workdir: workdir / lab.stage / 'checkpoints'
  return lab.spoil(
    'no permission to write checkpoints',
    'permission',
    Start(heeds_modes=True),
    spoil=lambda w: path(w).chmod(0o555),
    mend=lambda w: path(w).chmod(0o755),
  )


def faults_of_root(lab: Laboratory) -> Iterator[Outcome]:
  """Tries what only root can arrange."""
  disk = lab.root / 'disk'
  with small_disk(disk, megabytes=6):

    def fill(workdir: pathlib.Path) -> None:
      shutil.copytree(workdir, disk / 'w')
      shutil.rmtree(workdir)
      workdir.symlink_to(disk / 'w')
      free = shutil.disk_usage(disk).free
      (disk / 'filler').write_bytes(bytes(max(free - 60_000, 0)))

    yield lab.spoil(
      'the disk is full but for 60 kB (a tmpfs)',
      'full',
      spoil=fill,
      mend=lambda w: (disk / 'filler').unlink(),
    )


def largest(path: pathlib.Path, part: str = '') -> pathlib.Path:
  """The largest file below a directory, with `part` in its name or place."""
  found = [p for p in path.rglob('*') if p.is_file() and part in str(p)]
  return max(found, key=lambda p: p.stat().st_size)


def change(path: pathlib.Path, how: Callable[[bytes], bytes]) -> None:
  """Writes other bytes into a file."""
  path.write_bytes(how(path.read_bytes()))


@contextlib.contextmanager
def small_disk(path: pathlib.Path, megabytes: int) -> Iterator[None]:
  """Mounts a file system of a few megabytes."""
  path.mkdir()
  size = f'size={megabytes}m'
  subprocess.run(['mount', '-t', 'tmpfs', '-o', size, 'none', path], check=True)
  try:
    yield
  finally:
    subprocess.run(['umount', path], check=True)


def command(workdir: pathlib.Path, cache: pathlib.Path, mode: str) -> list[str]:
  """The command line of a stage, without what several processes need."""
  return [
    *(sys.executable, '-m', 'adanat_jax.main', f'--config={CONFIG}'),
    *(f'--workdir={workdir}', f'--jax_cache_dir={cache}'),
    f'--config.mode={mode}',
    *(f'--config.{name}={value}' for name, value in FIELDS.items()),
  ]


def environment() -> dict[str, str]:
  """Like this one's, on the CPU."""
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), *sys.path])),
  }


def launcher(cache: pathlib.Path) -> Launch:
  """Starts `adanat_jax.main` as users do, with stage `nat`."""

  def launch(
    workdir: pathlib.Path, outputs: Sequence[pathlib.Path], how: Start
  ) -> list[subprocess.Popen[bytes]]:
    port = handshake.free_port()
    started = []

    def limit() -> None:
      resource.setrlimit(resource.RLIMIT_FSIZE, (how.file_limit,) * 2)

    limited = how.limited if how.file_limit else ()
    for index in how.only:
      own = how.workdirs[index] if how.workdirs else workdir
      line = [
        *command(own, cache, 'nat'),
        *(how.fields if index == 0 else ()),
        f'--coordinator_address=localhost:{port}',
        '--num_processes=2',
        f'--process_id={index}',
        f'--distributed_timeout={TIMEOUT}',
      ]
      if how.heeds_modes and os.geteuid() == 0:
        line = [*HEED_MODES, *line]
      with outputs[index].open('wb') as output:
        # What is printed is not meant by a limit of files.
        pipe = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=output)
      started.append(
        subprocess.Popen(
          line,
          cwd=ROOT,
          env=environment(),
          stdout=pipe.stdin,
          stderr=subprocess.STDOUT,
          preexec_fn=limit if index in limited else None,
        )
      )
      assert pipe.stdin is not None
      pipe.stdin.close()
    return started

  return launch


def main(argv: Sequence[str]) -> None:
  """Tries everything and prints the table."""
  del argv
  logging.set_verbosity(logging.ERROR)
  rng = np.random.default_rng(_SEED.value)
  root = pathlib.Path(_ROOT.value or tempfile.mkdtemp(prefix='faults-'))
  root.mkdir(parents=True, exist_ok=True)
  # Another user has to get through.
  root.chmod(0o755)
  base, cache = root / 'base', root / 'cache'
  subprocess.run(
    command(base, cache, 'tokenizer'), cwd=ROOT, env=environment(), check=True
  )
  begun = time.monotonic()
  lab = Laboratory(root, base, 'nat', launcher(cache))
  duration = time.monotonic() - begun
  print(f'undisturbed: {lab.num_steps} steps, {duration:.0f} s\n')
  print('| fault | exit statuses | all ended after | said | started again |')
  print('|---|---|---|---|---|', flush=True)

  def trials() -> Iterator[Outcome]:
    for index in range(_KILLS.value):
      number = (signal.SIGKILL, signal.SIGTERM)[index % 2]
      # Every fifth while the processes start, find each other and compile.
      early = index % 5 == 4
      yield lab.kill(
        f'kill-{index}',
        int(rng.integers(2)),
        number,
        0 if early else int(rng.integers(1, lab.num_steps)),
        float(rng.uniform(0, 0.6 * duration if early else 0.1)),
      )
    yield from simple_faults(lab)
    yield from more_faults(lab)
    yield no_permission(lab)
    if os.geteuid() == 0:
      yield from faults_of_root(lab)

  outcomes = []
  for outcome in trials():
    print(outcome.row(), flush=True)
    outcomes.append(outcome)
  bad = sum(not outcome.good for outcome in outcomes)
  print(f'\n{len(outcomes)} faults, {bad} of them not survived')
  sys.exit(bad > 0)


_KILLS = flags.DEFINE_integer('kills', 20, 'How many random kills.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the random moments.')
_ROOT = flags.DEFINE_string(
  'root',
  '',
  'Where to work: a new directory, or one whose undisturbed run is there.',
)

if __name__ == '__main__':
  app.run(main)
