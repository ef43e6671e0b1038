"""Features without any network: principal components of small pixels.

A distance between such features cannot be flattered by a network that the
generator, or its reward, has learned from. It sees where ink is and how
neighbouring places go together, not whether a stroke is sharp.

Shape legend: `B` samples, `P` = size * size * C pixels, `d` components.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class PixelPrincipalComponents:
  """Projects images on the directions in which training images vary most."""

  mean: np.ndarray  # float64[P]
  components: np.ndarray  # float64[P, d], orthonormal columns
  size: int  # height and width that images are averaged down to

  @classmethod
  def fit(
    cls, images: np.ndarray, num_components: int = 32, size: int = 8
  ) -> 'PixelPrincipalComponents':
    """Finds the components, in order of falling variance.

    Args:
      images: float[B, H, W, C], training images.
      num_components: d; fewer than B and at most P.
      size: images are averaged over boxes down to this height and width.

    Raises:
      ValueError: if the images cannot be cut into equal boxes, or there are
        too few images or pixels for so many components.
    """
    pixels = _small_pixels(images, size)
    limit = min(len(pixels) - 1, pixels.shape[1])
    if not 1 <= num_components <= limit:
      raise ValueError(
        f'num_components is {num_components}; {len(pixels)} images of '
        f'{pixels.shape[1]} values allow 1 to {limit}'
      )
    mean = pixels.mean(axis=0)
    centred = pixels - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    components = vectors[:, ::-1][:, :num_components]
    # The sign of an eigenvector is arbitrary; fix it, to be reproducible.
    strongest = np.abs(components).argmax(axis=0)
    signs = np.sign(components[strongest, np.arange(num_components)])
    return cls(mean=mean, components=components * signs, size=size)

  def features(self, images: np.ndarray) -> np.ndarray:
    """Projects images float[B, H, W, C], scaled as those of `fit`, to [B, d].

    Raises:
      ValueError: if the images cannot be cut into equal boxes.
    """
    return (_small_pixels(images, self.size) - self.mean) @ self.components


def _small_pixels(images: np.ndarray, size: int) -> np.ndarray:
  """Box averages, flattened: float64[B, size * size * C]."""
  images = np.asarray(images, np.float64)
  if images.ndim != 4 or images.shape[1] % size or images.shape[2] % size:
    raise ValueError(
      f'images must be [B, H, W, C] with H and W multiples of {size}, got '
      f'shape {images.shape}'
    )
  count, height, width, channels = images.shape
  shape = (count, size, height // size, size, width // size, channels)
  return images.reshape(shape).mean(axis=(2, 4)).reshape(count, -1)
