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

  Attributes:
    widths: channels of each stage; all stages but the first halve the image.
    num_classes: number of logits.
    feature_width: width of the features.
    dropout_rate: of the features, in training, before the logits.
    dtype: compute type; features and logits are float32.
  """

  widths: tuple[int, ...]
  num_classes: int
  feature_width: int
  dropout_rate: float = 0.2
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: jax.Array, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Classifies images.

    Args:
      images: float[B, H, W, C] in [0, 1].
      train: whether to drop out (needs the `dropout` stream).

    Returns:
      The features, float32[B, F], and the logits, float32[B, num_classes].
    """
    x = 2.0 * images.astype(self.dtype) - 1.0
    for i, width in enumerate(self.widths):
      x = nn.Conv(
        width,
        (3, 3),
        strides=1 if i == 0 else 2,
        dtype=self.dtype,
        name=f'conv_{i}',
      )(x)
      x = nn.GroupNorm(num_groups=1, dtype=self.dtype, name=f'norm_{i}')(x)
      x = layers.gelu(x)
    x = x.reshape(x.shape[0], -1)
    features = nn.Dense(self.feature_width, dtype=self.dtype, name='hidden')(x)
    features = layers.gelu(features).astype(jnp.float32)
    x = nn.Dropout(self.dropout_rate, deterministic=not train)(features)
    return features, nn.Dense(self.num_classes, name='logits')(x)
