"""Whether a training would wait for its data.

  python benchmarks/pipelines.py --output=pipelines.json

measures how fast examples are read, decoded and prepared, how much of a
processor a sample takes, and how much memory sets of two sizes take; and works
out how many samples a second one accelerator could ask for at most. Each case
runs in a process of its own. `--quick` sees that everything works.

The time of a processor a sample tells more than samples a second where other
programs run: it hardly changes with what they do. `--against=CHECKOUT` measures
the smaller sets here and in another checkout, in turn, and compares it.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any
from unittest import mock

from absl import logging
import hours
import jax
import numpy as np
import output
from PIL import Image
from sklearn.datasets import load_sample_images

from adanat_jax.data import prepared, prepared_writer
from adanat_jax.data.order import epoch_batch
from adanat_jax.data.prefetch import Prefetch
from adanat_jax.data.raw_images import RawImages
from adanat_jax.data.sources.raw_source import RawExample, RawSource
from adanat_jax.experiment import config as config_lib, encoder, networks
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import files, timing
from adanat_jax.stages import prepare_shards

_ROOT = pathlib.Path(__file__).parents[1]
_CONFIGS = _ROOT / 'configs'
# Dense products in bfloat16 by the makers' data sheets, operations a second.
PEAKS = {
  'H200': 989e12,
  'TPU v5e': 197e12,
  'TPU v5p': 459e12,
  'TPU v6e': 918e12,
}
# Of convolutions of float32 arrays: TF32 on the H200.
_PEAK_FLOAT32 = 494e12
# A backward pass costs twice a forward pass.
_TRAINING = 3

# What is measured: examples of the smaller of two sets, a batch of them.
CASES = {
  'tokens': (100_000, 2048),
  'tokens and states': (600, 64),
  'tokens and ids': (50_000, 2048),
  'images': (4_000, 64),
  'prepare': (80, 16),
}
_GROWTH = 4


def needs() -> dict[str, dict[str, float]]:
  """Samples a second at the full peak of an accelerator, by case."""
  config = config_lib.load(f'{_CONFIGS / "in256"}.py')
  classes = hours.Costs(config)
  captions = hours.Costs(config_lib.load(f'{_CONFIGS / "cc3m256"}.py'))
  # The policy's training shows the discriminator real images: for each of them
  # several are sampled, which is more than half of its operations.
  policy = config.policy
  real = policy.discriminator.updates * policy.discriminator.batch_size
  sampled = policy.batch_size + real
  costs = {
    'tokens': _TRAINING * classes.nat,
    'tokens and states': _TRAINING * captions.nat,
    'tokens and ids': _TRAINING * captions.nat + captions.text,
    'images': sampled * classes.sample / real,
  }
  found = {
    case: {device: peak / cost for device, peak in PEAKS.items()}
    for case, cost in costs.items()
  }
  # Both views of each image are encoded, once.
  encoding = _PEAK_FLOAT32 / (2 * classes.encoder)
  return found | {'images to prepare': {'H200': encoding}}


def photographs(count: int) -> RawSource:
  """Equal JPEG files of the size of ImageNet's: 500 x 375 pixels, 110 KB."""
  stream = io.BytesIO()
  picture = Image.fromarray(load_sample_images().images[0])
  picture.resize((500, 375)).save(stream, 'JPEG', quality=92)
  image = stream.getvalue()
  read = lambda index: RawExample(f'{index}.jpg', image, index % 1000)
  return RawSource(count, read, lambda: np.arange(count, dtype=np.uint64))


def write_set(
  directory: pathlib.Path, layout: prepared.RecordLayout, count: int
) -> None:
  """Writes a prepared set of random numbers, in eight files."""
  rng = np.random.default_rng(0)
  sizes = [len(part) for part in np.array_split(np.arange(count), 8)]
  for shard, size in enumerate(sizes):
    name = prepared.file_name('train', shard, len(sizes))
    writer = prepared_writer.ShardWriter(directory / name, layout)
    for i in range(size):
      record: dict[str, Any] = {'key': f'{shard}/{i:08d}.JPEG'}
      for field, (dtype, shape) in layout.arrays().items():
        drawn = rng.integers(0, 1024, shape, np.int16)
        record[field] = drawn.astype(dtype)
      if layout.num_classes:
        record['label'] = i % layout.num_classes
      else:
        record['caption'] = 'a photograph of two temples beside a lake'
      writer.write(record)
    writer.publish()
  files.write_json(
    directory / prepared.MANIFEST_FILE,
    {
      'settings': {},
      'layout': vars(layout),
      'splits': {'train': {'has_images': True, 'shards': sizes}},
    },
  )


def _records_of(case: str, count: int, directory: pathlib.Path) -> Any:
  """The examples of a case that reads records or decodes images."""
  if case == 'images':
    return RawImages(photographs(count), (256, 256))
  layouts = {
    'tokens': prepared.RecordLayout(256, num_classes=1000),
    'tokens and states': prepared.RecordLayout(
      256, text_length=77, state_width=1280, embedding_width=1280
    ),
    'tokens and ids': prepared.RecordLayout(256, text_length=77),
  }
  write_set(directory, layouts[case], count)
  return prepared.PreparedExamples(directory, 'train')


@contextlib.contextmanager
def _timed(result: dict[str, Any]) -> Iterator[None]:
  """Adds `seconds`, `processor_seconds` and `memory` of what happens inside."""
  stop, sizes = threading.Event(), [0]

  def watch() -> None:
    # What files take in the system's cache is not ours.
    while not stop.wait(0.02 * (len(sizes) > 1)):
      lines = pathlib.Path('/proc/self/status').read_text().splitlines()
      (size,) = (x.split()[1] for x in lines if x.startswith('RssAnon'))
      sizes.append(1024 * int(size))

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  start, start_processor = time.perf_counter(), time.process_time()
  yield
  result['seconds'] = time.perf_counter() - start
  result['processor_seconds'] = time.process_time() - start_processor
  stop.set()
  thread.join()
  result['memory'] = max(sizes)


def read(
  case: str, size: int, directory: pathlib.Path, seconds: float
) -> dict[str, Any]:
  """Reads batches as a training does, as fast as they come."""
  batch_size = min(CASES[case][1], size)
  examples = _records_of(case, size, directory)

  def batch_at(step: int) -> Any:
    return examples.take(epoch_batch(step, batch_size, len(examples), seed=0))

  result: dict[str, Any] = {}
  with Prefetch(batch_at) as ahead:
    ahead(0)
    step = 0
    with _timed(result):
      deadline = time.monotonic() + seconds
      while time.monotonic() < deadline:
        step += 1
        ahead(step)
  return result | {'samples': step * batch_size}


def prepare(size: int, directory: pathlib.Path) -> dict[str, Any]:
  """Prepares images of 256 pixels; the tokenizer is narrow, and counted too."""
  config = config_lib.load(
    f'{_CONFIGS / "in256"}.py:mini',
    {
      'data.image_size': 256,
      'prepare.shard_size': size,
      'prepare.batch_size': CASES['prepare'][1],
      'tokenizer.width_multipliers': (1, 1, 1, 1, 1),
    },
  )
  module = networks.tokenizer_module(config)
  image = np.zeros((1, 256, 256, 3), np.float32)
  params = jax.jit(module.init)(jax.random.key(0), image)['params']
  experiment = Experiment(config, directory)
  with mock.patch.object(experiment, 'network', lambda _: (module, params)):
    encode = encoder.Encoder(experiment, config.prepare.batch_size)
  result: dict[str, Any] = {}

  def make(count: int, place: pathlib.Path) -> None:
    files.make_directory(place / 'shards')
    sources = {'train': photographs(count)}
    work = prepare_shards.Preparation(experiment, place, sources, encode)
    work.make()

  with open(os.devnull, 'w') as null, contextlib.redirect_stdout(null):
    make(2 * CASES['prepare'][1], directory / 'compiles')
    with _timed(result):
      make(size, directory / 'timed')
  return result | {'samples': size}


def measure(case: str, size: int, seconds: float) -> dict[str, Any]:
  """One case in this process."""
  with tempfile.TemporaryDirectory() as name:
    directory = pathlib.Path(name)
    if case == 'prepare':
      return prepare(size, directory)
    return read(case, size, directory, seconds)


def in_child(
  root: pathlib.Path, case: str, size: int, seconds: float
) -> dict[str, Any]:
  """One case in a process of its own, of this checkout or another."""
  ours = [path for path in sys.path if not path.startswith(str(_ROOT))]
  text = subprocess.check_output(
    [
      *(sys.executable, root / 'benchmarks/pipelines.py', f'--case={case}'),
      *(f'--size={size}', f'--seconds={seconds}'),
    ],
    env=os.environ | {'PYTHONPATH': os.pathsep.join([str(root), *ours])},
    text=True,
  )
  return json.loads(text.splitlines()[-1])


def measure_all(quick: bool, seconds: float) -> dict[str, Any]:
  """All cases, each with two sizes, in processes of their own."""
  cases: dict[str, Any] = {}
  for case, (size, _) in CASES.items():
    size = max(size // 20, 16) if quick else size
    cases[case] = [
      {'size': count, **in_child(_ROOT, case, count, seconds)}
      for count in (size, _GROWTH * size)
    ]
  return {'machine': timing.machine(), 'needs': needs(), 'cases': cases}


def compare(other: pathlib.Path, rounds: int, seconds: float) -> str:
  """A table of processor time a sample in another checkout and in this one."""
  rows = []
  for case, (size, _) in CASES.items():
    found: dict[pathlib.Path, list[float]] = {other: [], _ROOT: []}
    for number in range(rounds):
      for root in list(found)[:: (-1) ** number]:
        one = in_child(root, case, size, seconds)
        found[root].append(1e6 * one['processor_seconds'] / one['samples'])
    cells = [
      f'{np.median(x):,.1f} us ({min(x):,.1f} to {max(x):,.1f})'
      for x in found.values()
    ]
    before, after = map(np.median, found.values())
    rows.append([case, *cells, f'{after / before - 1:+.1%}'])
  header = ['case', 'there: median (range)', 'here: median (range)', 'more']
  return output.table(header, rows)


def render(result: dict[str, Any]) -> str:
  """The table of measurements and the table of needs."""
  rows = [
    [case, found['size'], *_speed(found, result['needs'].get(case, {}))]
    for case, sizes in result['cases'].items()
    for found in sizes
  ]
  asked = [
    [case, *(f'{need[d]:,.0f}' if d in need else '' for d in PEAKS)]
    for case, need in result['needs'].items()
  ]
  header = 'case,examples,samples/s,of a core,cores,memory'
  return '\n\n'.join(
    [
      output.machine(result['machine']),
      output.table(header.split(','), rows),
      output.table(('samples/s', *PEAKS), asked),
    ]
  )


def _speed(found: dict[str, Any], need: dict[str, float]) -> list[str]:
  each = found['processor_seconds'] / found['samples']
  return [
    f'{found["samples"] / found["seconds"]:,.0f}',
    f'{1e6 * each:,.0f} us',
    f'{each * need["H200"]:.2f}' if need else '',
    f'{found["memory"] / 1e6:,.0f} MB',
  ]


def main() -> None:
  """Measures, prints tables, writes JSON."""
  logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO.
  parser = output.parser(__doc__)
  add = parser.add_argument
  add('--quick', action='store_true', help='Small and short, for trying out.')
  add('--case', help='Of a child: what to measure.')
  add('--size', type=int, help='Of a child: examples.')
  add('--seconds', type=float, default=4, help='How long each case is read.')
  add('--against', type=pathlib.Path, help='Another checkout.')
  add('--rounds', type=int, default=7, help='How often each is measured.')
  given = parser.parse_args()
  seconds = 0.3 if given.quick else given.seconds
  if given.against:
    print(compare(given.against.resolve(), given.rounds, seconds))
    return
  if given.case:
    print(json.dumps(measure(given.case, given.size, given.seconds)))
    return
  result = measure_all(given.quick, seconds)
  output.finish(result, render(result), given.output)


if __name__ == '__main__':
  main()
