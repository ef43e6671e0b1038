"""Stage `statistics`: the moments of real images, which distances start from.

  python -m adanat_jax.main --config=configs/image_folder.py --workdir=RUN \
      --config.mode=statistics --config.data.path=photos

writes `statistics/train-inception.npz` with `mu` float64[d] and `sigma`
float64[d, d], as pytorch-fid and the published statistics have them, and beside
it a JSON file that says what they are the moments of. Images are streamed:
memory does not depend on their number, and a run that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
import concurrent.futures
import dataclasses
import io
import json
import os
import pathlib
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from adanat_jax import digests, distributed, files, sharding
from adanat_jax.config_rules import check, choice
from adanat_jax.data import images as images_lib, prefetch
from adanat_jax.data.order import epoch_batch
from adanat_jax.errors import UserError
from adanat_jax.metrics.frechet import Gaussian, MomentAccumulator
from adanat_jax.stages import datasets, features, networks
from adanat_jax.stages.features import FeatureNetwork

Config = ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Reference:
  """The moments of real images.

  Attributes:
    gaussian: mean and covariance of their features.
    description: which file they are from, and its hash.
  """

  gaussian: Gaussian
  description: dict[str, Any]


def check_config(config: Config) -> None:
  """Raises UserError for values that statistics cannot be made with."""
  features.check_config(config, needs_reference=False)
  check(config, {'statistics.split': choice(*datasets.SPLITS)})
  datasets.check_config(config)
  path = config.statistics.output
  if path and pathlib.Path(path).suffix != '.npz':
    raise UserError(
      f'config.statistics.output={path}: give the name of an .npz file'
    )


def run(config: Config, workdir: pathlib.Path) -> None:
  """Writes the moments of the split `config.statistics.split`.

  Args:
    config: the whole config; `data`, `statistics` and `evaluate.network` are
      read.
    workdir: gets `statistics/`.

  Raises:
    UserError: for a missing network or images that are not there.
  """
  check_config(config)
  split = config.statistics.split
  network = features.load(config, workdir)
  path = config.statistics.output or path_of(config, workdir, split)
  make(config, workdir, network, split, pathlib.Path(path))


def path_of(config: Config, workdir: pathlib.Path, split: str) -> pathlib.Path:
  """Where the moments of a split are kept unless they are put elsewhere."""
  return workdir / 'statistics' / f'{split}-{config.evaluate.network}.npz'


def reference(
  config: Config, workdir: pathlib.Path, network: FeatureNetwork
) -> Reference:
  """What `config.evaluate` measures distances from.

  The file `evaluate.statistics`; where none is named, the moments of
  `evaluate.reference_split`, which are made first if they are not there.

  Raises:
    UserError: if the file is not there, or of another network.
  """
  path = pathlib.Path(config.evaluate.statistics)
  if not config.evaluate.statistics:
    split = config.evaluate.reference_split
    path = path_of(config, workdir, split)
    make(config, workdir, network, split, path)
    distributed.wait_until_seen(path)
  gaussian = read(path)
  width = network.num_features(config)
  if len(gaussian.mean) != width:
    raise UserError(
      f'{path}: moments of {len(gaussian.mean)} features;'
      f' config.evaluate.network={network.name} gives {width}'
    )
  return Reference(gaussian, {'file': path.name, **_about(path)})


def _about(path: pathlib.Path) -> dict[str, Any]:
  """The hash of a file of moments, and what its manifest says, if any."""
  manifest = path.with_suffix('.json')
  about = files.read_json(manifest) if manifest.is_file() else {}
  digest = digests.sha256_of(path)
  if about and about.get('sha256') != digest:
    raise UserError(
      f'{path}: is not the file that {manifest.name} beside it describes; '
      'delete one of them'
    )
  return {'sha256': digest, 'made of': about.get('made of', 'not told')}


def read(path: pathlib.Path) -> Gaussian:
  """Reads moments, as published (`mu`, `sigma`) or converted by us.

  Raises:
    UserError: if the file is not there or holds something else.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      names = ('mu', 'sigma') if 'mu' in file else ('mean', 'covariance')
      mean, covariance = (np.asarray(file[n], np.float64) for n in names)
  except FileNotFoundError as error:
    raise UserError(f'{path}: there is no such file of moments') from error
  except (OSError, ValueError, LookupError, EOFError) as error:
    raise UserError(
      f'{path}: no moments of features in it (mu, sigma): {error!s:.100}'
    ) from error
  if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
    raise UserError(
      f'{path}: mu is {mean.shape} and sigma {covariance.shape}, not the'
      ' moments of one set of features'
    )
  return Gaussian(mean, covariance)


def make(
  config: Config,
  workdir: pathlib.Path,
  network: FeatureNetwork,
  split: str,
  path: pathlib.Path,
) -> None:
  """Writes the moments of a split, unless the file is there already.

  Args:
    config: the whole config.
    workdir: of this run.
    network: what measures the images.
    split: 'train' or 'test'.
    path: the .npz file; what was counted so far is kept beside it.

  Raises:
    UserError: if too many images cannot be read.
  """
  about: dict[str, Any] = {
    **network.description(),
    'split': split,
    'image size': config.data.image_size,
  }
  if distributed.from_first(path.is_file):
    distributed.from_first(lambda: _check_same(config, path, about))
    return
  files.make_directory(path.parent)
  images = RealImages(config, workdir, split)
  about['images'] = images.description
  distributed.say(f'statistics: {path.name}, {len(images)} images')
  partial = path.with_name(f'{path.name}.partial')
  moments = MomentAccumulator()
  done, skipped = distributed.from_first(
    lambda: _restore(partial, about, moments)
  )
  unsaved = 0
  index = np.arange(done, len(images))
  for found, is_read in measured(config, network, images, index):
    done += len(found)
    unsaved += len(found)
    skipped += int((~is_read).sum())
    if distributed.process_index() == 0:
      moments.update(found, is_read)
      if unsaved >= config.evaluate.save_every:
        unsaved = 0
        position = {'about': json.dumps(about), 'at': [done, skipped]}
        files.write_bytes(partial, _npz({**moments.state(), **position}))
  images.check_share(skipped)
  distributed.from_first(lambda: _finish(path, moments, about, skipped))
  distributed.say(f'statistics: written {path}')


def _check_same(
  config: Config, path: pathlib.Path, about: dict[str, Any]
) -> None:
  """Refuses moments that are there already and are of something else."""
  manifest = path.with_suffix('.json')
  made_of = files.read_json(manifest)['made of'] if manifest.is_file() else {}
  there = {name: made_of.get(name) for name in about}
  if 'path' in config.data:
    # The images themselves are not looked at: they may be gone by now.
    about = {**about, 'path': datasets.path_of(config, about['split'])}
    there['path'] = made_of.get('images', {}).get('path')
  different = [name for name in about if there[name] != about[name]]
  if different:
    name = different[0]
    raise UserError(
      f'{path} is there already, and its {name} is {there[name]!r} instead of'
      f' {about[name]!r}: delete it, or give another file'
    )


def _finish(
  path: pathlib.Path,
  moments: MomentAccumulator,
  about: dict[str, Any],
  skipped: int,
) -> None:
  gaussian = moments.result()
  arrays = {'mu': gaussian.mean, 'sigma': gaussian.covariance}
  data = _npz(arrays)
  # The moments last: where they are, the manifest is.
  manifest = {
    'sha256': digests.sha256_of_bytes(data),
    'made of': {**about, 'counted': moments.count, 'unreadable': skipped},
  }
  files.write_json(path.with_suffix('.json'), manifest)
  files.write_bytes(path, data)
  path.with_name(f'{path.name}.partial').unlink(missing_ok=True)


def _restore(
  partial: pathlib.Path, about: dict[str, Any], moments: MomentAccumulator
) -> list[int]:
  """Takes up what a killed run has counted: images, unreadable ones."""
  if not partial.is_file():
    return [0, 0]
  with np.load(partial) as file:
    state = dict(file)
  if str(state['about']) != json.dumps(about):
    return [0, 0]
  moments.restore(state)
  return state['at'].tolist()


def _npz(arrays: dict[str, Any]) -> bytes:
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  return buffer.getvalue()


class RealImages:
  """The images of a split as they are: not mirrored, captions unread."""

  def __init__(self, config: Config, workdir: pathlib.Path, split: str):
    """Opens the source.

    Raises:
      UserError: if there is none, or it has no images.
    """
    self._config = config
    self._digits = None
    if datasets.is_digits(config):
      self._digits = datasets.image_examples(config, workdir, split)
      self.description: dict[str, Any] = {'source': 'digits', 'split': split}
      return
    self._source = datasets.raw_source(config, split)
    if not self._source.has_images:
      raise UserError(
        f'config.data: the {split} split of source {config.data.source} holds'
        ' captions alone; give moments of images by config.evaluate.statistics'
      )
    self.description = dict(self._source.description)
    self._pool = concurrent.futures.ThreadPoolExecutor(
      os.cpu_count() or 1, thread_name_prefix='decode'
    )

  def __len__(self) -> int:
    return len(self._source if self._digits is None else self._digits)

  def take(self, index: np.ndarray) -> dict[str, np.ndarray]:
    """Decodes images.

    Args:
      index: int[n].

    Returns:
      `images` float32[n, H, W, C] in [0, 1] and `is_read` bool[n]; images that
      cannot be read are black.
    """
    if self._digits is not None:
      images = self._digits.take(index)['images']
      return {'images': images, 'is_read': np.ones(len(index), bool)}
    found = list(self._pool.map(self._decode, index.tolist()))
    side = self._config.data.image_size
    black = np.zeros((side, side, 3), np.uint8)
    pixels = np.stack([black if image is None else image for image in found])
    return {
      'images': images_lib.to_unit(pixels),
      'is_read': np.array([image is not None for image in found]),
    }

  def _decode(self, index: int) -> np.ndarray | None:
    data = self._config.data
    example = self._source[index]
    try:
      return images_lib.decode(
        example.image, data.image_size, data.apply_orientation
      )
    except images_lib.CorruptImageError as error:
      logging.warning('%s is left out: %s', example.key, error)
      return None

  def check_share(self, skipped: int) -> None:
    """Raises UserError if more images cannot be read than the config allows."""
    if self._digits is not None:
      return
    limit = self._config.data.max_corrupt_share
    if skipped > limit * len(self):
      raise UserError(
        f'{skipped} of {len(self)} images cannot be read, more than'
        f' config.data.max_corrupt_share={limit} allows; the log names them'
      )


def measured(
  config: Config,
  network: FeatureNetwork,
  images: RealImages,
  index: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Features of real images, in batches of `config.evaluate.batch_size`.

  Each process reads its part, and gets the features of all.

  Args:
    config: the whole config.
    network: what measures.
    images: the images.
    index: which of them, int[n], in which order.

  Yields:
    float32[b, d], and bool[b]: False for images that cannot be read.
  """
  mesh = networks.mesh_of(config)
  size = -(-config.evaluate.batch_size // mesh.size) * mesh.size
  num_batches = -(-len(index) // size)

  def rows_at(batch: int) -> dict[str, np.ndarray]:
    places = sharding.local_rows(batch * size + np.arange(size), mesh)
    # The last batch is filled up from the beginning.
    return images.take(index[places % len(index)])

  apply = jax.jit(lambda params, x: network.apply(params, x)[0])
  with prefetch.Prefetch(rows_at, num_steps=num_batches) as ahead:
    for batch in range(num_batches):
      rows = sharding.put_batch(ahead(batch), mesh)
      with jax.set_mesh(mesh):
        found = apply(network.params, rows['images'])
      found, is_read = sharding.gather((found, rows['is_read']))
      num_real = min(size, len(index) - batch * size)
      yield found[:num_real], is_read[:num_real]


def some_features(
  config: Config,
  workdir: pathlib.Path,
  network: FeatureNetwork,
  split: str,
  count: int,
) -> np.ndarray:
  """Features of real images drawn from a split, float32[at most count, d].

  Raises:
    UserError: if too many images cannot be read.
  """
  images = RealImages(config, workdir, split)
  count = min(count, len(images))
  seed = networks.order_seed(config, 'evaluate/real')
  index = epoch_batch(0, count, len(images), seed)
  parts = [
    found[is_read]
    for found, is_read in measured(config, network, images, index)
  ]
  result = np.concatenate(parts)
  images.check_share(count - len(result))
  return result
