"""scikit-learn's handwritten digits: 1,797 real images, nothing to download.

The images are 8x8 with 17 grey levels. They are scaled to [0, 1], enlarged
bilinearly and split once into 1,433 training and 364 test images, stratified
by digit. Two conditions can be read from a label: the digit itself, or only
whether it is even or odd. The second leaves the decoder to settle on one of
five digits, so tokens revealed together can contradict each other.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository; the copy inside scikit-learn.
"""

import dataclasses

import numpy as np

from adanat_jax.errors import UserError

SOURCE_SIZE = 8
TRAIN_FRACTION = 0.8

# Names of the classes of each kind of condition, in the order of their ids.
CONDITION_NAMES: dict[str, tuple[str, ...]] = {
  'digit': tuple(str(digit) for digit in range(10)),
  'parity': ('even', 'odd'),
}


@dataclasses.dataclass(frozen=True)
class DigitsData:
  """Both splits: 1,433 images to train on, 364 to test, in [0, 1]."""

  train_images: np.ndarray  # float32[n, H, W, 1]
  train_labels: np.ndarray  # int32[n]
  test_images: np.ndarray  # float32[n, H, W, 1]
  test_labels: np.ndarray  # int32[n]


def load(image_size: int = 16) -> DigitsData:
  """Loads, enlarges and splits the digits, each split in shuffled order.

  The image size is 8 pixels or a multiple. The split is the same at every size.

  Raises:
    UserError: for another image size.
  """
  if image_size < SOURCE_SIZE or image_size % SOURCE_SIZE:
    raise UserError(
      f'image_size of the digits is {image_size}; it must be a multiple of '
      f'{SOURCE_SIZE}, at least {SOURCE_SIZE}'
    )
  # Here, as only the digits need it, and it takes a second to import.
  from sklearn import datasets  # pylint: disable=import-outside-toplevel

  source = datasets.load_digits()
  labels = source.target.astype(np.int32)
  images = _resize(source.images / 16.0, image_size)[..., None]
  train, test = _split(labels)
  return DigitsData(
    train_images=images[train],
    train_labels=labels[train],
    test_images=images[test],
    test_labels=labels[test],
  )


def condition_of(labels: np.ndarray, kind: str) -> np.ndarray:
  """The class ids that the decoder is conditioned on, int32[B].

  Args:
    labels: int32[B], digits 0 to 9.
    kind: 'digit' (10 classes) or 'parity' (0 is even, 1 is odd).

  Raises:
    UserError: if the kind is unknown.
  """
  labels = np.asarray(labels, np.int32)
  return labels % 2 if num_conditions(kind) == 2 else labels


def num_conditions(kind: str) -> int:
  """Returns the number of classes of a kind of condition.

  Raises:
    UserError: if the kind is unknown.
  """
  if kind not in CONDITION_NAMES:
    allowed = ', '.join(CONDITION_NAMES)
    raise UserError(
      f'condition of the digits is {kind!r}; it must be one of: {allowed}'
    )
  return len(CONDITION_NAMES[kind])


def _split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Indices of the training and test images, stratified by digit.

  Of each digit the same fraction, rounded down, is for training.
  """
  from adanat_jax.data.order import epoch_batch

  order = epoch_batch(0, len(labels), len(labels), seed=0)
  ordered = labels[order]
  is_train = np.zeros(len(labels), bool)
  for digit in np.unique(labels):
    places = np.flatnonzero(ordered == digit)
    is_train[places[: int(TRAIN_FRACTION * len(places))]] = True
  return order[is_train], order[~is_train]


def _resize(images: np.ndarray, size: int) -> np.ndarray:
  """Enlarges bilinearly with half-pixel centres; edges are repeated.

  From float[n, h, h] to float32[n, size, size]; values stay within those of the
  input.
  """
  source = images.shape[1]
  centre = (np.arange(size) + 0.5) * source / size - 0.5
  low = np.floor(centre).astype(int)
  high_weight = centre - low
  rows = np.arange(size)
  matrix = np.zeros((size, source))
  np.add.at(matrix, (rows, np.clip(low, 0, source - 1)), 1.0 - high_weight)
  np.add.at(matrix, (rows, np.clip(low + 1, 0, source - 1)), high_weight)
  resized = np.einsum('yh,nhw,xw->nyx', matrix, images, matrix, optimize=True)
  return np.clip(resized, 0.0, 1.0).astype(np.float32)
