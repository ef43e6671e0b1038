"""CLIP's image tower against a second computation of it, in NumPy, by key."""

from __future__ import annotations

import io
import math

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from safetensors.numpy import save_file
import scipy.special

from adanat_jax.convert import clip as convert, layout
from adanat_jax.errors import UserError
from adanat_jax.models import clip
from adanat_jax.runtime import checkpoint
from support.converting import CommandLineTest

WIDTH, DEPTH, HEADS, MLP, JOINT, SIDE, PATCH = 16, 2, 4, 24, 6, 12, 4


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Random weights by Hugging Face's keys."""
  e, l = 'vision_model.embeddings', 'vision_model.encoder.layers'
  shapes = {
    f'{e}.class_embedding': (WIDTH,),
    f'{e}.patch_embedding.weight': (WIDTH, 3, PATCH, PATCH),
    f'{e}.position_embedding.weight': ((SIDE // PATCH) ** 2 + 1, WIDTH),
    'visual_projection.weight': (JOINT, WIDTH),
  }
  norms = ['vision_model.pre_layrnorm', 'vision_model.post_layernorm']
  for i in range(DEPTH):
    norms += [f'{l}.{i}.layer_norm1', f'{l}.{i}.layer_norm2']
    linears = {f'self_attn.{n}_proj': (WIDTH, WIDTH) for n in 'qkv'}
    linears['self_attn.out_proj'] = (WIDTH, WIDTH)
    linears |= {'mlp.fc1': (MLP, WIDTH), 'mlp.fc2': (WIDTH, MLP)}
    for name, shape in linears.items():
      shapes[f'{l}.{i}.{name}.weight'] = shape
      shapes[f'{l}.{i}.{name}.bias'] = shape[:1]
  for name in norms:
    shapes |= {f'{name}.weight': (WIDTH,), f'{name}.bias': (WIDTH,)}
  return {
    name: (0.3 * rng.normal(size=shape) + name.endswith('norm.weight')).astype(
      np.float32
    )
    for name, shape in shapes.items()
  }


def open_clip_keys(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The same weights as open_clip lays them out."""
  e = 'vision_model.embeddings'
  result = {
    'visual.class_embedding': arrays[f'{e}.class_embedding'],
    'visual.positional_embedding': arrays[f'{e}.position_embedding.weight'],
    'visual.conv1.weight': arrays[f'{e}.patch_embedding.weight'],
    'visual.proj': arrays['visual_projection.weight'].T.copy(),
  }
  for kind in ('weight', 'bias'):
    for ours, theirs in (
      ('ln_pre', 'pre_layrnorm'),
      ('ln_post', 'post_layernorm'),
    ):
      result[f'visual.{ours}.{kind}'] = arrays[f'vision_model.{theirs}.{kind}']
    for i in range(DEPTH):
      there = f'vision_model.encoder.layers.{i}'
      here = f'visual.transformer.resblocks.{i}'
      result[f'{here}.attn.in_proj_{kind}'] = np.concatenate(
        [arrays[f'{there}.self_attn.{n}_proj.{kind}'] for n in 'qkv']
      )
      for ours, theirs in (
        ('attn.out_proj', 'self_attn.out_proj'),
        ('mlp.c_fc', 'mlp.fc1'),
        ('mlp.c_proj', 'mlp.fc2'),
        ('ln_1', 'layer_norm1'),
        ('ln_2', 'layer_norm2'),
      ):
        result[f'{here}.{ours}.{kind}'] = arrays[f'{there}.{theirs}.{kind}']
  return result


def in_numpy(
  arrays: dict[str, np.ndarray], images: np.ndarray, activation: str
) -> np.ndarray:
  """The tower in float64, patch by patch and head by head."""
  get = lambda name: arrays[name].astype(np.float64)

  def norm(x, name):
    centred = x - x.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / spread * get(f'{name}.weight') + get(f'{name}.bias')

  def linear(x, name):
    return x @ get(f'{name}.weight').T + get(f'{name}.bias')

  def act(x):
    if activation == 'gelu':
      return 0.5 * x * (1 + scipy.special.erf(x / math.sqrt(2)))
    return x / (1 + np.exp(-1.702 * x))

  rows = []
  kernel = get('vision_model.embeddings.patch_embedding.weight')
  for image in images.astype(np.float64):
    tokens = [get('vision_model.embeddings.class_embedding')]
    for i in range(0, SIDE, PATCH):
      for j in range(0, SIDE, PATCH):
        patch = image[i : i + PATCH, j : j + PATCH].transpose(2, 0, 1)
        tokens.append((kernel * patch).sum((1, 2, 3)))
    x = np.stack(tokens)
    x = x + get('vision_model.embeddings.position_embedding.weight')
    x = norm(x, 'vision_model.pre_layrnorm')
    for i in range(DEPTH):
      name = f'vision_model.encoder.layers.{i}'
      hidden = norm(x, f'{name}.layer_norm1')
      q, k, v = (linear(hidden, f'{name}.self_attn.{n}_proj') for n in 'qkv')
      heads = []
      for part in np.split(np.arange(WIDTH), HEADS):
        scores = q[:, part] @ k[:, part].T / math.sqrt(len(part))
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        heads.append(weights @ v[:, part])
      attended = np.concatenate(heads, 1)
      x = x + linear(attended, f'{name}.self_attn.out_proj')
      hidden = act(linear(norm(x, f'{name}.layer_norm2'), f'{name}.mlp.fc1'))
      x = x + linear(hidden, f'{name}.mlp.fc2')
    pooled = norm(x[0], 'vision_model.post_layernorm')
    rows.append(pooled @ get('visual_projection.weight').T)
  return np.stack(rows)


class TowerTest(parameterized.TestCase):
  @parameterized.parameters('gelu', 'quick_gelu')
  def test_equals_a_second_computation(self, activation):
    rng = np.random.default_rng(0)
    arrays = weights(rng)
    module = convert.infer_image(arrays, activation=activation, num_heads=HEADS)
    self.assertEqual((module.image_size, module.depth), (SIDE, DEPTH))
    params = convert.IMAGE.to_ours(arrays, module)
    images = rng.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    with jax.default_matmul_precision('highest'):
      ours = module.apply({'params': params}, images)
    np.testing.assert_allclose(
      ours, in_numpy(arrays, images, activation), rtol=2e-5, atol=2e-5
    )

  @parameterized.parameters(
    ('ViT-B/32', 87_849_216, 151_277_313),
    ('ViT-L/14', 303_966_208, 427_616_513),
  )
  def test_published_sizes(self, name, of_image, of_both):
    text, image = clip.TOWERS[name]
    count = lambda module, x: sum(
      math.prod(leaf.shape)
      for leaf in jax.tree.leaves(layout.shapes(module, x))
    )
    found = count(image, jnp.zeros((1, 224, 224, 3)))
    self.assertEqual(found, of_image)
    # Their sum counts the scale of the logits too.
    texts = count(text, jnp.zeros((1, 77), jnp.int32))
    self.assertEqual(found + texts + 1, of_both)

  def test_patches_that_do_not_fit(self):
    module = clip.CLIPImage(10, 4, 8, 1, 2, 8, 4, 'gelu')
    with self.assertRaisesRegex(UserError, 'patch_size=4.*image_size=10'):
      layout.shapes(module, jnp.zeros((1, 10, 10, 3)))


class PrepareTest(parameterized.TestCase):
  @parameterized.parameters((64, 28), (20, 28))
  def test_resizes_as_pillow_does(self, size, side):
    rng = np.random.default_rng(0)
    # Smooth, and with an edge that a bicubic kernel overshoots at.
    image = np.zeros((size, size, 3))
    image[: size // 2] = rng.random((1, 1, 3))
    image[:, size // 3 :, 0] = 1.0
    pixels = (255 * image).astype(np.uint8)
    resized = Image.fromarray(pixels).resize((side, side), Image.BICUBIC)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    expected = (np.asarray(resized) / 255 - mean) / std
    ours = clip.prepare_images(jnp.asarray(pixels / 255)[None], side)[0]
    # Pillow rounds to bytes after each of two passes.
    np.testing.assert_allclose(ours, expected, atol=1.5 / 255 / 0.26)
    wide = np.pad(pixels, ((0, 0), (3, 4), (0, 0)))
    again = clip.prepare_images(jnp.asarray(wide / 255)[None], side)[0]
    np.testing.assert_array_equal(again, ours)


class ConvertTest(CommandLineTest):
  @parameterized.parameters(False, True)
  def test_there_and_back(self, is_open_clip):
    arrays = weights(np.random.default_rng(1))
    held = open_clip_keys(arrays) if is_open_clip else dict(arrays)
    # What else stands in a file of both towers.
    held['logit_scale'] = np.float32([2.0])
    held['text_projection' if is_open_clip else 'text_projection.weight'] = (
      np.zeros((4, 4), np.float32)
    )
    path = self.folder / 'clip.safetensors'
    save_file(held, path)
    said = self.convert('clip_image', path)
    self.assertIn('images of 12 pixels, patches of 4', said)
    self.assert_same(self.reverse('clip_image'), arrays)
    params = checkpoint.load_params(self.output, 'params')
    self.assertEqual(
      params['patches']['kernel'].shape, (PATCH, PATCH, 3, WIDTH)
    )

  def test_a_text_tower_is_refused(self):
    path = self.folder / 'text.npz'
    buffer = io.BytesIO()
    np.savez(buffer, **{'text_projection.weight': np.zeros((2, 2))})
    path.write_bytes(buffer.getvalue())
    self.assertIn("CLIP's image tower", self.refused('clip_image', path))


if __name__ == '__main__':
  absltest.main()
