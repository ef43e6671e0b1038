"""A discriminator of patches: which parts of an image look real.

A few convolutions, so that each logit is about a patch of pixels (70 a side
with three levels; Isola et al. 2017, "Image-to-Image Translation with
Conditional Adversarial Networks", section 3.2.2). The original normalises over
the batch, this one over the image: its logits depend neither on other images
nor on how a batch is split over devices.

Shape letters: `B` samples, `H`, `W` an image, `h`, `w` the grid of patches.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.errors import UserError

# Widths stop growing at this multiple of the first one.
_MOST = 8
_init = nn.initializers.normal(0.02)


class PatchDiscriminator(nn.Module):
  """Logits of patches, high for real ones."""

  # Channels after the first convolution; they double a level, up to eight times
  # as many.
  base_width: int = 64
  num_levels: int = 3  # how often the sides are halved
  num_groups: int = 32  # groups of the normalisations; divides `base_width`

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Judges patches of images float[B, H, W, C] in [0, 1].

    Returns float32[B, h, w], h = H / 2 ** num_levels, rounded up.

    Raises:
      UserError: if `num_groups` does not divide `base_width`.
    """
    if self.base_width % self.num_groups:
      raise UserError(
        f'num_groups={self.num_groups} of the patch discriminator does not'
        f' divide its base_width={self.base_width}'
      )
    x = 2.0 * images - 1.0
    for level in range(self.num_levels + 1):
      # The last one keeps the size.
      stride = 2 if level < self.num_levels else 1
      width = self.base_width * min(2**level, _MOST)
      x = self._conv(x, width, stride, f'conv_{level}')
      if level:
        x = nn.GroupNorm(self.num_groups, name=f'norm_{level}')(x)
      x = nn.leaky_relu(x, 0.2)
    return self._conv(x, 1, 1, 'conv_out')[..., 0].astype(jnp.float32)

  def _conv(
    self, x: jax.Array, width: int, stride: int, name: str
  ) -> jax.Array:
    strides = (stride, stride)
    return nn.Conv(width, (4, 4), strides, kernel_init=_init, name=name)(x)
