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

import argparse
from collections.abc import Callable, Iterator, Sequence
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from laboratory import TIMEOUT, Laboratory, Launch, Outcome, Start
import numpy as np

from adanat_jax.runtime import addresses

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
  """Tries what needs no rights, and what tests try too."""
  newest, stage = lab.newest(lab.whole), lab.stage
  for words, part, limited in (
    ('file', '', (0, 1)),
    ('file of process 1', 'ocdbt.process_1', (1,)),
  ):
    limit = largest(newest, part).stat().st_size // 2
    how = Start(file_limit=limit, limited=limited)
    yield lab.spoil(f'no {words} may grow over {limit / 1000:.1f} kB', how)
  yield lab.spoil(
    'the newest checkpoint: largest file cut in half',
    spoil=lambda w: change(largest(lab.newest(w)), cut),
  )

  def block(workdir: pathlib.Path) -> None:
    (workdir / stage).rename(workdir / 'aside')
    (workdir / stage).write_text('in the way')

  def unblock(workdir: pathlib.Path) -> None:
    (workdir / stage).unlink()
    (workdir / 'aside').rename(workdir / stage)

  fault = "a file where the stage's directory should be"
  yield lab.spoil(fault, spoil=block, mend=unblock)


def more_faults(lab: Laboratory) -> Iterator[Outcome]:
  """Tries the rest."""
  newest, stage = lab.newest, lab.stage
  path = lambda workdir: workdir / stage / 'checkpoints'
  flip = lambda data: data[:99] + bytes([data[99] ^ 4]) + data[100:]
  spoilt: dict[str, Callable[[pathlib.Path], Any]] = {
    'the newest checkpoint: one bit of the largest file': (
      lambda w: change(largest(newest(w)), flip)
    ),
    'the newest checkpoint: meta emptied': (
      lambda w: change(newest(w) / 'meta/metadata', lambda _: b'')
    ),
    'the newest checkpoint: a file gone': (
      lambda w: (newest(w) / 'state/_METADATA').unlink()
    ),
    'the newest checkpoint: an empty directory': (
      lambda w: [shutil.rmtree(newest(w) / x) for x in ('state', 'meta')]
    ),
    'all checkpoints: largest file cut in half': (
      lambda w: [change(largest(x), cut) for x in path(w).glob('[0-9]*')]
    ),
    'metrics.jsonl ends in half a row': lambda w: change(
      w / stage / 'metrics.jsonl', lambda x: x + b'{"step": 25, "lo'
    ),
  }
  for fault, spoil in spoilt.items():
    yield lab.spoil(fault, spoil=spoil)
  apart = lab.root / 'shared', lab.root / 'elsewhere'
  for fault, how in {
    'process 1 is not started': Start(only=(0,)),
    'process 0 is not started': Start(only=(1,)),
    'process 0 has another config': Start(
      fields=('--config.nat.batch_size=64',)
    ),
    'a workdir that the processes do not share': Start(workdirs=apart),
  }.items():
    yield lab.spoil(fault, how)
  yield lab.spoil(
    'no permission to write checkpoints',
    Start(heeds_modes=True),
    spoil=lambda w: path(w).chmod(0o555),
    mend=lambda w: path(w).chmod(0o755),
  )


def full_disk(lab: Laboratory) -> Outcome:
  """Tries a file system of six megabytes, which only root can mount."""
  disk = lab.root / 'disk'
  disk.mkdir()
  mount = 'mount -t tmpfs -o size=6m none'.split()
  subprocess.run([*mount, disk], check=True)

  def fill(workdir: pathlib.Path) -> None:
    shutil.copytree(workdir, disk / 'w')
    shutil.rmtree(workdir)
    workdir.symlink_to(disk / 'w')
    free = shutil.disk_usage(disk).free
    (disk / 'filler').write_bytes(bytes(max(free - 60_000, 0)))

  try:
    return lab.spoil(
      'the disk is full but for 60 kB (a tmpfs)',
      spoil=fill,
      mend=lambda w: (disk / 'filler').unlink(),
    )
  finally:
    subprocess.run(['umount', disk], check=True)


def cut(data: bytes) -> bytes:
  """The first half."""
  return data[: len(data) // 2]


def largest(path: pathlib.Path, part: str = '') -> pathlib.Path:
  """The largest file below a directory, with `part` in its name or place."""
  found = [p for p in path.rglob('*') if p.is_file() and part in str(p)]
  return max(found, key=lambda p: p.stat().st_size)


def change(path: pathlib.Path, how: Callable[[bytes], bytes]) -> None:
  """Writes other bytes into a file."""
  path.write_bytes(how(path.read_bytes()))


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
    port = addresses.free_port()
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


def main() -> None:
  """Tries everything and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  add = parser.add_argument
  add('--kills', type=int, default=20, help='How many random kills.')
  add('--seed', type=int, default=0, help='Of the random moments.')
  add('--root', help='A new directory, or one whose undisturbed run is there.')
  given = parser.parse_args()
  rng = np.random.default_rng(given.seed)
  root = pathlib.Path(given.root or tempfile.mkdtemp(prefix='faults-'))
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
    for index in range(given.kills):
      # Every fifth while the processes start, find each other and compile.
      early = index % 5 == 4
      yield lab.kill(
        f'kill-{index}',
        int(rng.integers(2)),
        (signal.SIGKILL, signal.SIGTERM)[index % 2],
        0 if early else int(rng.integers(1, lab.num_steps)),
        float(rng.uniform(0, 0.6 * duration if early else 0.1)),
      )
    yield from simple_faults(lab)
    yield from more_faults(lab)
    if os.geteuid() == 0:
      yield full_disk(lab)

  outcomes = []
  for outcome in trials():
    print(outcome.row(), flush=True)
    outcomes.append(outcome)
  bad = sum(not outcome.good for outcome in outcomes)
  print(f'\n{len(outcomes)} faults, {bad} of them not survived')
  sys.exit(bad > 0)


if __name__ == '__main__':
  main()
