"""The statistics of real images, which a Fréchet distance compares with.

A file of them holds `mu` float64[d] and `sigma` float64[d, d], as pytorch-fid
and the published statistics have them; a JSON file beside it says what they
were computed from. Images are streamed: memory does not depend on their number,
and a run that was killed goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pathlib
from typing import Any

import numpy as np

from adanat_jax.convert import files as weights
from adanat_jax.convert.reading import some
from adanat_jax.errors import UserError
from adanat_jax.experiment import datasets
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import real_images
from adanat_jax.measuring.features import FeatureNetwork
from adanat_jax.metrics import frechet
from adanat_jax.metrics.frechet import Gaussian, MomentAccumulator
from adanat_jax.runtime import files, processes


@dataclasses.dataclass(frozen=True)
class Reference:
  """The moments of real images, and which file they are from."""

  gaussian: Gaussian
  description: dict[str, Any]


def path_of(experiment: Experiment, split: str) -> pathlib.Path:
  """Where the moments of a split are kept unless they are put elsewhere."""
  name = f'{split}-{experiment.config.evaluate.network}.npz'
  return experiment.workdir / 'statistics' / name


def reference(experiment: Experiment, network: FeatureNetwork) -> Reference:
  """What `config.evaluate` measures distances from.

  The file `evaluate.statistics`; where none is named, the moments of
  `evaluate.reference_split`, which are made first if they are not there.

  Raises:
    UserError: if the file is not there, or of another network.
  """
  config = experiment.config
  path = pathlib.Path(config.evaluate.statistics)
  if not config.evaluate.statistics:
    split = config.evaluate.reference_split
    path = path_of(experiment, split)
    make(experiment, network, split, path)
    processes.wait_until_seen(path)
  gaussian = read(path)
  width = network.num_features(experiment)
  if len(gaussian.mean) != width:
    raise UserError(
      f'{path}: moments of {len(gaussian.mean)} features;'
      f' config.evaluate.network={network.name} gives {width}'
    )
  return Reference(gaussian, {'file': path.name, **_about(path)})


def _about(path: pathlib.Path) -> dict[str, Any]:
  """The hash of a file of moments, and what its manifest says, if any."""
  about = _manifest(path)
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  if about and about.get('sha256') != digest:
    raise UserError(
      f'{path}: is not the file that {path.stem}.json beside it describes;'
      ' delete one of them'
    )
  return {'sha256': digest, 'made of': about.get('made of', 'not told')}


def _manifest(path: pathlib.Path) -> dict[str, Any]:
  """What lies beside a file of moments that was made here; {} if nothing."""
  path = path.with_suffix('.json')
  if not path.is_file():
    return {}
  shape = {'sha256': str, 'made of': {'images?': dict}}
  return files.read_json(path, shape, 'delete it')


def read(path: pathlib.Path) -> Gaussian:
  """Reads moments, as published (`mu`, `sigma`) or converted by us.

  Raises:
    UserError: if the file is not there or holds something else, such as a
      covariance that no set of features has.
  """
  if not path.exists():
    raise UserError(f'{path}: there is no such file of moments')
  value = weights.read(path)
  found = value if isinstance(value, dict) else {}
  names = ('mu', 'sigma') if 'mu' in found else ('mean', 'covariance')
  mean, covariance = (found.get(name) for name in names)
  if not isinstance(mean, np.ndarray) or not isinstance(covariance, np.ndarray):
    raise UserError(
      f'{path}: no moments of features in it (mu, sigma), but'
      f' {some(map(str, found)) or type(value).__name__}'
    )
  try:
    return frechet.checked(mean, covariance)
  except UserError as error:
    raise UserError(f'{path}: {error}') from error


def make(
  experiment: Experiment,
  network: FeatureNetwork,
  split: str,
  path: pathlib.Path,
) -> None:
  """Writes the moments of a split, unless the file is there already.

  What was counted so far is kept beside it.

  Raises:
    UserError: if too many images cannot be read.
  """
  config = experiment.config
  about: dict[str, Any] = {
    **network.description(),
    'split': split,
    'image size': experiment.image_size,
  }
  if processes.from_first(path.is_file):
    processes.from_first(lambda: _check_same(experiment, path, about))
    return
  files.make_directory(path.parent)
  images = real_images.RealImages(experiment, split)
  about['images'] = images.description
  processes.say(f'statistics: {path.name}, {len(images)} images')
  partial = path.with_name(f'{path.name}.partial')
  moments = MomentAccumulator()
  done, skipped = processes.from_first(
    lambda: _restore(partial, about, moments)
  )
  unsaved = 0
  index = np.arange(done, len(images))
  for found, is_read in images.measured(network, index):
    done += len(found)
    unsaved += len(found)
    skipped += int((~is_read).sum())
    if processes.process_index() == 0:
      moments.update(found, is_read)
      if unsaved >= config.evaluate.save_every:
        unsaved = 0
        state = {**moments.state(), 'about': json.dumps(about)}
        state['at'] = [done, skipped]
        files.write_bytes(partial, to_npz(state))
  images.check_share(skipped)
  processes.from_first(lambda: _finish(path, moments, about, skipped))
  processes.say(f'statistics: written {path}')


def _check_same(
  experiment: Experiment, path: pathlib.Path, about: dict[str, Any]
) -> None:
  """Refuses moments that are there already and are of something else."""
  made_of = _manifest(path).get('made of', {})
  there = {name: made_of.get(name) for name in about}
  if 'path' in experiment.config.data:
    # The images themselves are not looked at: they may be gone by now.
    about = {**about, 'path': datasets.path_of(experiment, about['split'])}
    # Earlier versions wrote `~`.
    there['path'] = os.path.expanduser(
      str(made_of.get('images', {}).get('path', ''))
    )
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
  data = to_npz({'mu': gaussian.mean, 'sigma': gaussian.covariance})
  # The moments last: where they are, the manifest is.
  manifest = {
    'sha256': hashlib.sha256(data).hexdigest(),
    'made of': {**about, 'counted': moments.count, 'unreadable': skipped},
  }
  files.write_json(path.with_suffix('.json'), manifest, sealed=True)
  files.write_bytes(path, data)
  path.with_name(f'{path.name}.partial').unlink(missing_ok=True)


def _restore(
  partial: pathlib.Path, about: dict[str, Any], moments: MomentAccumulator
) -> list[int]:
  """Restores what a killed run has counted: images, unreadable ones."""
  if not partial.is_file():
    return [0, 0]
  try:
    state = weights.read(partial)
    if str(state['about']) != json.dumps(about):
      return [0, 0]
    done, skipped = state['at'].tolist()
    moments.restore(state)
  except (UserError, LookupError, TypeError, ValueError) as error:
    processes.say(f'statistics: counting again: {error}')
    return [0, 0]
  return [done, skipped]


def to_npz(arrays: dict[str, Any]) -> bytes:
  """The content of a .npz file of these arrays."""
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  return buffer.getvalue()
