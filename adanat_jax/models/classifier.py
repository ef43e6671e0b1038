"""A small convolutional classifier, to measure and to reward.

The digits experiment uses it in place of Inception. Shape letters: `B` samples,
`H`, `W`, `C` an image, `F` width of the features.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.models import layers


class ConvClassifier(nn.Module):
  """Convolutions, a hidden layer that serves as features, class logits.

  Normalisation is within each sample (one group per layer), so a sample's
  features do not depend on its batch.
  """

  # Channels of each stage; all stages but the first halve the image.
  widths: tuple[int, ...]
  num_classes: int
  feature_width: int
  dropout_rate: float = 0.2  # of the features, in training, before the logits
  dtype: layers.Dtype = jnp.float32  # compute type; results are float32

  @nn.compact
  def __call__(
    self, images: jax.Array, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Classifies images float[B, H, W, C] in [0, 1]; `train` drops out.

    Returns features, float32[B, F], and logits, float32[B, num_classes].
    """
    stages = [
      (
        nn.Conv(
          width, (3, 3), 2 if i else 1, dtype=self.dtype, name=f'conv_{i}'
        ),
        nn.GroupNorm(num_groups=1, dtype=self.dtype, name=f'norm_{i}'),
      )
      for i, width in enumerate(self.widths)
    ]

    def convolved(x: jax.Array) -> jax.Array:
      for convolution, norm in stages:
        x = layers.gelu(norm(convolution(x)))
      return x.reshape(x.shape[0], -1)

    x = 2.0 * images.astype(self.dtype) - 1.0
    least = layers.MANY_TRAINED_PIXELS if train else layers.MANY_PIXELS
    x = layers.side_by_side(convolved, x, least=least)
    features = nn.Dense(self.feature_width, dtype=self.dtype, name='hidden')(x)
    features = layers.gelu(features).astype(jnp.float32)
    x = nn.Dropout(self.dropout_rate, deterministic=not train)(features)
    return features, nn.Dense(self.num_classes, name='logits')(x)
