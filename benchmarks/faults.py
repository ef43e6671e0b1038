"""Faults, tried on stages in two processes: killed, starved, damaged.

  python benchmarks/faults.py [--kills=20] [--seed=0] [--root=DIRECTORY]

Each stage is run by two processes of this machine, once without disturbance,
tiny. Then one of its processes is killed at a random moment, the same command
is started again, killed again, and so on to the end of the run; and all that it
leaves is compared with the undisturbed run: every leaf of the last checkpoints,
rows of metrics, journals, results, pictures, prepared files, byte for byte,
without what a clock has measured. Then a training is starved and damaged in
other ways. The results are two Markdown tables; docs/reliability.md has them. A
full disk of its own needs root, and is left out without.
"""

from __future__ import annotations

import argparse
import atexit
from collections.abc import Callable, Iterator, Sequence
import itertools
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any

from laboratory import TIMEOUT, Child, Laboratory, Launch, Outcome, Start
import numpy as np
from PIL import Image

from adanat_jax import main as adanat_main
from adanat_jax.data import digits
from adanat_jax.runtime import addresses

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = 'configs/digits.py:tiny'
IMAGES = 'configs/image_folder.py:tiny'
# Each starts where the one before it has ended; `prepare` has another config.
STAGES = (
  *('tokenizer', 'judges', 'nat', 'policy', 'search', 'evaluate', 'report'),
  *('compare', 'prepare'),
)
FIELDS = {
  'save_every': 4,
  'log_every': 1,
  'tensorboard': False,
  'data.image_size': 8,
  'tokenizer.num_steps': 20,
  'tokenizer.width_multipliers': (1, 1),
  'judges.measure.num_steps': 20,
  'judges.reward.num_steps': 20,
  'judges.reward.depth': 1,
  'judges.reward.hooks': (0,),
  'judges.reward.cutout': 2,
  'nat.num_steps': 30,
  'nat.width': 16,
  'nat.depth': 2,
  'nat.num_heads': 2,
  'policy.num_steps': (2,),
  'policy.iterations': 6,
  'policy.save_every': 1,
  'policy.discriminator.spectral_warmup': 2,
  'search.num_steps': (2,),
  'search.evaluations': 12,
  'evaluate.max_grid': 6,
  'report.images_per_class': 2,
  # The stages before it have trained and searched for a NAT.
  'compare.networks': ('enat',),
  'compare.enat.encoder_depth': 1,
  'compare.timing_rounds': 1,
}
IMAGE_FIELDS = {
  'tensorboard': False,
  'data.image_size': 16,
  'data.num_classes': 10,
  'tokenizer.num_steps': 1,
  'tokenizer.width_multipliers': (1, 1, 1),
  'prepare.batch_size': 8,
  'prepare.shard_size': 32,
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


def full_disk(lab: Laboratory) -> Iterator[Outcome]:
  """Tries a file system of six megabytes, which only root can mount."""
  if os.geteuid():
    return
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
    yield lab.spoil(
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


def command(
  workdir: pathlib.Path, cache: pathlib.Path, mode: str, images: str = ''
) -> list[str]:
  """The command line of a stage, without what several processes need."""
  fields = {**IMAGE_FIELDS, 'data.path': images} if images else FIELDS
  return [
    *(sys.executable, '-m', 'adanat_jax.main'),
    f'--config={IMAGES if images else CONFIG}',
    *(f'--workdir={workdir}', f'--jax_cache_dir={cache}'),
    f'--config.mode={mode}',
    *(f'--config.{name}={value}' for name, value in fields.items()),
  ]


def pair(
  line: Sequence[str], index: int, port: int, timeout: int = TIMEOUT
) -> list[str]:
  """The command line of one of two processes."""
  return [
    *(*line, f'--coordinator_address=localhost:{port}', '--num_processes=2'),
    *(f'--process_id={index}', f'--distributed_timeout={timeout}'),
  ]


def environment() -> dict[str, str]:
  """Like this one's, on the CPU; starting counts here, and not speed."""
  return {
    'XLA_FLAGS': '--xla_backend_optimization_level=0'
    ' --xla_llvm_disable_expensive_passes=true',
    **os.environ,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
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
      fields = how.fields if index == 0 else ()
      line = pair([*command(own, cache, 'nat'), *fields], index, port)
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


def forked(cache: pathlib.Path, mode: str, images: str = '') -> Launch:
  """Forks both processes from one that has only imported the modules."""
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload([__name__, *adanat_main.STAGES.values()])

  def launch(
    workdir: pathlib.Path, outputs: Sequence[pathlib.Path], _: Start
  ) -> list[Child]:
    port, started = addresses.free_port(), []
    for index, output in enumerate(outputs):
      line = command(workdir, cache, mode, images)[2:]
      # A process that died outside a collective is missed after a third.
      line = pair(line, index, port, timeout=12)
      process = context.Process(target=_run, args=(line, output), daemon=True)
      process.start()
      started.append(Child(process))
    return started

  return launch


def _run(line: list[str], output: pathlib.Path) -> None:
  """Runs the command line as a process of its own would."""
  with output.open('w') as file:
    for stream in (1, 2):
      os.dup2(file.fileno(), stream)
  os.chdir(ROOT)
  sys.argv = line
  try:
    adanat_main.run()
  finally:
    # multiprocessing leaves these out, and JAX says goodbye in them.
    atexit._run_exitfuncs()


def write_images(folder: pathlib.Path, count: int) -> None:
  """Writes a class of handwritten digits a folder."""
  data = digits.load(16)
  for index in range(count):
    label = int(data.train_labels[index])
    path = folder / f'class-{label}' / f'{index:04d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (255 * data.train_images[index, :, :, 0]).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def kill_stages(
  root: pathlib.Path, stages: Sequence[str], count: int, seed: int
) -> int:
  """Kills in these stages, prints a table, and returns how many are bad."""
  images = root / 'images'
  print(
    '| stage | kills | of process 0 | at the start | runs | the other ended'
    ' with | within | all in all |',
  )
  print('|---|---|---|---|---|---|---|---|', flush=True)
  bad, base = 0, root / 'empty'
  base.mkdir(exist_ok=True)
  last = max(map(STAGES.index, stages))
  for stage in STAGES[: last + 1]:
    of_images = str(images) if stage == 'prepare' else ''
    if of_images:
      if not images.exists():
        write_images(images, 200)
      base, mode = root / 'base-of-images', 'tokenizer'
      line = command(base, root / 'cache', mode, of_images)
      subprocess.run(line, cwd=ROOT, env=environment(), check=True)
    place = root / stage
    place.mkdir(exist_ok=True)
    launch = forked(root / 'cache', stage, of_images)
    lab = Laboratory(place, base, stage, launch)
    if stage in stages:
      found = lab.kill_along(count, seed)
      print(found.row(), flush=True)
      bad += bool(found.difference)
    base = lab.whole
  return bad


def starve_and_damage(root: pathlib.Path) -> int:
  """Tries the other faults on a training; returns how many are bad."""
  base, cache = root / 'base', root / 'cache'
  line = command(base, cache, 'tokenizer')
  subprocess.run(line, cwd=ROOT, env=environment(), check=True)
  lab = Laboratory(root, base, 'nat', launcher(cache))
  print('| fault | exit statuses | all ended after | said | started again |')
  print('|---|---|---|---|---|', flush=True)
  bad = 0
  faults = simple_faults(lab), more_faults(lab), full_disk(lab)
  for outcome in itertools.chain(*faults):
    print(outcome.row(), flush=True)
    bad += not outcome.good
  return bad


def main() -> None:
  """Tries everything and prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  add = parser.add_argument
  add('--kills', type=int, default=20, help='How many, in each stage.')
  add('--stages', default=','.join(STAGES), help='Where to kill.')
  add('--faults', choices=['on', 'off'], default='on', help='The others.')
  add('--seed', type=int, default=0, help='Of the random moments.')
  add('--root', help='A new directory, or one of an earlier call.')
  given = parser.parse_args()
  os.environ.update(environment())
  # Whoever ends this ends what it has started.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  root = pathlib.Path(given.root or tempfile.mkdtemp(prefix='faults-'))
  root.mkdir(parents=True, exist_ok=True)
  # Another user has to get through.
  root.chmod(0o755)
  bad = 0
  if given.kills:
    bad += kill_stages(root, given.stages.split(','), given.kills, given.seed)
  if given.faults == 'on':
    bad += starve_and_damage(root)
  print(f'\n{bad} not survived')
  sys.exit(bad > 0)


if __name__ == '__main__':
  main()
