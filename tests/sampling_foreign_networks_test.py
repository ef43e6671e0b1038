"""From files of other networks' layouts to images, by the two commands.

Google's MaskGIT: the files hold the weights of the original's own outputs, see
`parity_test`. Halton-MaskGIT and LlamaGen: NumPy computes what the published
formulas say (valeoai/Halton-MaskGIT `Network/transformer.py`,
FoundationVision/LlamaGen `vq_model.py`), in float64 and in torch's layout, and
names each array as it reads it: no key map of ours is asked.
"""

import pathlib

from absl.testing import absltest
from flax import serialization, traverse_util
import jax
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from adanat_jax.convert import __main__ as cli, kinds, maskgit
from adanat_jax.errors import UserError
from adanat_jax.experiment import networks
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.experiment.loading import load
from adanat_jax.models.maskgit import MaskGITTransformer
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.stages import nat, sample, tokenizer
from support import configs, reference_arrays, torch_files
from support.converting import DATA


class Weights(dict):
  """Arrays of a file, made when they are first read."""

  def __init__(self):
    super().__init__()
    self.random = np.random.default_rng(0)

  def read(self, key, *shape):
    if key not in self:
      numbers = 0.3 * self.random.normal(size=shape)
      # Gains about 1.
      is_gain = len(shape) == 1 and key.endswith('weight')
      self[key] = (numbers + is_gain).astype(np.float32)
    return self[key].astype(np.float64)

  def linear(self, x, key, width, bias=True):
    y = x @ self.read(f'{key}.weight', width, x.shape[-1]).T
    return y + self.read(f'{key}.bias', width) if bias else y

  def conv(self, x, key, width, size=3, stride=1, pad=None):
    """Of x [B, C, H, W]; `pad` defaults to what keeps the sides."""
    kernel = self.read(f'{key}.weight', width, x.shape[1], size, size)
    pad = pad or ((size // 2, size // 2),) * 2
    x = np.pad(x, ((0, 0), (0, 0), *pad))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
    y = np.einsum(
      'bchwij,ocij->bohw', windows[:, :, ::stride, ::stride], kernel
    )
    return y + self.read(f'{key}.bias', width)[:, None, None]


def swish(x):
  return x / (1 + np.exp(-x))


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def unit_rms(x):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def halton_logits(w, tokens, labels, *, codes, classes, width, depth, heads):
  """The network's logits [B, N, codes + 1]."""
  batch, positions = tokens.shape
  words = w.read('tok_emb.weight', codes + 1, width)
  x = words[tokens] + w.read('pos_emb.weight', positions, width)
  condition = w.read('cls_emb.weight', classes + 1, width)[labels]
  register = w.read('reg_tokens.weight', 1, width)
  x = np.concatenate([x, np.repeat(register[None], batch, 0)], axis=1)
  # Two thirds of four times the width, in multiples of 256.
  hidden = 256 * ((int(2 * (4 * width) / 3) + 255) // 256)

  def modulate(x, shift, scale):
    return x * (1 + scale) + shift

  for i in range(depth):
    key = f'transformer.layers.{i}'
    numbers = w.linear(swish(condition), f'{key}.mlp.1', 6 * width)
    gamma1, beta1, alpha1, gamma2, beta2, alpha2 = np.split(
      numbers[:, None], 6, axis=-1
    )
    y = unit_rms(x) * w.read(f'{key}.ln1.weight', width)
    y = modulate(y, gamma1, beta1)
    q, k, v = (w.linear(y, f'{key}.attn.w{p}', width, False) for p in 'qkv')
    split = lambda t: t.reshape(batch, positions + 1, heads, -1)
    q, k, v = map(split, (unit_rms(q), unit_rms(k), v))
    scores = np.einsum('bqhd,bkhd->bhqk', q, k) / np.sqrt(width / heads)
    y = np.einsum('bhqk,bkhd->bqhd', softmax(scores), v).reshape(x.shape)
    x = x + alpha1 * w.linear(y, f'{key}.attn.wo', width, False)
    y = unit_rms(x) * w.read(f'{key}.ln2.weight', width)
    y = modulate(y, gamma2, beta2)
    gate = swish(w.linear(y, f'{key}.ff.w1', hidden, False))
    y = gate * w.linear(y, f'{key}.ff.w3', hidden, False)
    x = x + alpha2 * w.linear(y, f'{key}.ff.w2', width, False)
  x = x[:, :positions]
  numbers = w.linear(swish(condition), 'last_norm.mlp.1', 2 * width)
  shift, scale = np.split(numbers[:, None], 2, axis=-1)
  x = unit_rms(x) * w.read('last_norm.norm_final.weight', width)
  x = x + w.read('last_norm.norm_final.bias', width)
  # The head's matrix is that of the embedding; the file has it twice.
  w['head.weight'] = w['tok_emb.weight']
  bias = w.read('head.bias', codes + 1)
  return modulate(x, shift, scale) @ words.T + bias


class LlamaGen:
  """Its two halves on weights, with fewer channels and groups."""

  base, multiples, blocks, groups, latent = 8, (1, 2), 1, 4, 256
  codes, code_width = 12, 6

  def __init__(self, weights):
    self.w = weights

  def norm(self, x, key):
    parts = x.reshape(len(x), self.groups, -1)
    mean, var = parts.mean(-1)[..., None], parts.var(-1)[..., None]
    y = ((parts - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
    gain, bias = (
      self.w.read(f'{key}.{name}', x.shape[1])[:, None, None]
      for name in ('weight', 'bias')
    )
    return y * gain + bias

  def block(self, x, key, width):
    y = self.w.conv(swish(self.norm(x, f'{key}.norm1')), f'{key}.conv1', width)
    y = self.w.conv(swish(self.norm(y, f'{key}.norm2')), f'{key}.conv2', width)
    if x.shape[1] != width:
      x = self.w.conv(x, f'{key}.nin_shortcut', width, 1)
    return x + y

  def attention(self, x, key):
    width = x.shape[1]
    y = self.norm(x, f'{key}.norm')
    q, k, v = (self.w.conv(y, f'{key}.{p}', width, 1) for p in 'qkv')
    q, k, v = (t.reshape(*t.shape[:2], -1) for t in (q, k, v))
    scores = softmax(np.einsum('bcq,bck->bqk', q, k) * width**-0.5)
    y = np.einsum('bqk,bck->bcq', scores, v).reshape(x.shape)
    return x + self.w.conv(y, f'{key}.proj_out', width, 1)

  def mid(self, x, key):
    x = self.block(x, f'{key}.mid.0', x.shape[1])
    x = self.attention(x, f'{key}.mid.1')
    return self.block(x, f'{key}.mid.2', x.shape[1])

  def level(self, x, key, level, count):
    for i in range(count):
      x = self.block(x, f'{key}.res.{i}', self.base * self.multiples[level])
      if level == len(self.multiples) - 1:
        x = self.attention(x, f'{key}.attn.{i}')
    return x

  def out(self, x, key, width):
    return self.w.conv(swish(self.norm(x, f'{key}.norm_out')),
                       f'{key}.conv_out', width)  # fmt: skip

  def codebook(self):
    rows = self.w.read('quantize.embedding.weight', self.codes, self.code_width)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

  def tokens(self, images):
    """Ids of images [B, H, W, 3] in [0, 1]."""
    x = 2 * np.moveaxis(images, -1, 1) - 1
    x = self.w.conv(x, 'encoder.conv_in', self.base)
    for i in range(len(self.multiples)):
      key = f'encoder.conv_blocks.{i}'
      x = self.level(x, key, i, self.blocks)
      if i < len(self.multiples) - 1:
        x = self.w.conv(
          x, f'{key}.downsample.conv', x.shape[1], 3, 2, ((0, 1), (0, 1))
        )
    x = self.out(self.mid(x, 'encoder'), 'encoder', self.latent)
    z = np.moveaxis(self.w.conv(x, 'quant_conv', self.code_width, 1), 1, -1)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    return (z @ self.codebook().T).argmax(-1).reshape(len(z), -1)

  def images(self, tokens, side):
    """Images [B, H, W, 3] in [0, 1] of ids [B, N]."""
    z = self.codebook()[tokens].reshape(len(tokens), side, side, -1)
    x = self.w.conv(np.moveaxis(z, -1, 1), 'post_quant_conv', self.latent, 1)
    x = self.w.conv(x, 'decoder.conv_in', self.base * self.multiples[-1])
    x = self.mid(x, 'decoder')
    for i, level in enumerate(reversed(range(len(self.multiples)))):
      key = f'decoder.conv_blocks.{i}'
      x = self.level(x, key, level, self.blocks + 1)
      if level:
        x = x.repeat(2, axis=2).repeat(2, axis=3)
        x = self.w.conv(x, f'{key}.upsample.conv', x.shape[1])
    return np.clip(
      (np.moveaxis(self.out(x, 'decoder', 3), 1, -1) + 1) / 2, 0, 1
    )


class ForeignNetworksTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def convert(self, kind, file):
    output = self.folder / file.stem
    cli.convert(kind, [str(file)], str(output))
    return str(output)

  def flax_file(self, kind, arrays, name):
    """Writes a file as Flax does, and converts it."""
    file = self.folder / f'{name}.msgpack'
    nested = traverse_util.unflatten_dict(dict(arrays), sep='/')
    file.write_bytes(serialization.msgpack_serialize(nested))
    return self.convert(kind, file)

  def picture(self, name):
    picture = Image.open(self.folder / 'sample' / name)
    return np.asarray(picture, np.float64) / 255

  def test_maskgit(self):
    reference = reference_arrays.read(DATA / 'maskgit_transformer_shared.npz')
    vq = reference_arrays.read(DATA / 'maskgit_vqgan_shared.npz')
    codes = reference.config['codebook_size']
    # The two files have different codebooks: rows that are read come first.
    used = np.unique(vq.inputs['code'])
    weights = dict(vq.weights)
    key = 'params/quantizer/codebook'
    rest = np.setdiff1d(np.arange(len(weights[key])), used)
    weights[key] = weights[key][[*used, *rest][:codes]]
    whole = self.flax_file(
      'maskgit_transformer', reference.weights, 'transformer'
    )
    # A config has an even depth, as published networks do.
    short = self.flax_file(
      'maskgit_transformer',
      {k: x for k, x in reference.weights.items() if 'Layer_2' not in k},
      'two_layers',
    )
    config = configs.load(
      'in256_maskgit.py',
      {
        'data.image_size': 128,
        'data.num_classes': reference.config['num_class'],
        'nat.width': reference.config['hidden_size'],
        'nat.depth': 2,
        'nat.num_heads': 4,
        'nat.mlp_ratio': 2,
        'nat.init_from': short,
        'tokenizer.init_from': self.flax_file(
          'maskgit_tokenizer', weights, 'tokenizer'
        ),
        'tokenizer.codebook_size': codes,
        'tokenizer.code_width': 32,
        'tokenizer.base_width': 32,
        'sample.classes': (3, 11),
      },
    )
    experiment = Experiment(config, self.folder)
    sample.run(experiment)
    generator = experiment.generator()
    drawn = generator.sample([3, 11], 8, config.sample.seed, 'maskgit')
    self.assertGreater((drawn.tokens[0] != drawn.tokens[1]).mean(), 0.5)
    for index, label in enumerate((3, 11)):
      found = self.picture(f'{index:05d}-class{label}.png')
      np.testing.assert_allclose(found, drawn.images[index], atol=1 / 255)
    schedule = generator.schedule(config.sample.policy, 8)
    self.assertFalse(schedule.guided)
    np.testing.assert_allclose(
      schedule.policy.masking_temperature, 4.5 * (1 - np.arange(1, 9) / 8)
    )
    with self.assertRaisesRegex(UserError, 'Halton is guided, .* no null'):
      generator.sample([3], 8, policy='halton')
    config.nat.update(init_from=whole, depth=3)
    module, params = Experiment(config, self.folder).network('nat')
    input_ids = reference.inputs['input_ids']
    canvas = np.where(input_ids == -1, codes, input_ids)[:, 1:]
    self.assertIn(codes, canvas)
    _, logits = jax.jit(module.apply)(
      {'params': params}, canvas, input_ids[:, 0] - codes
    )
    np.testing.assert_allclose(
      logits, reference.outputs['logits'][:, 1:, :codes], atol=2e-5
    )
    # Of this network, with these weights, `parity_test` compares the images.
    arrays = {k.removeprefix('params/'): x for k, x in weights.items()}
    module = maskgit.infer_tokenizer(arrays, num_res_blocks=2)
    self.assertEqual(generator.tokenizer, module)
    jax.tree.map(
      np.testing.assert_array_equal,
      generator.tokenizer_params,
      maskgit.TOKENIZER.to_ours(arrays, module),
    )

  def test_halton(self):
    llamagen = LlamaGen(Weights())
    transformer = Weights()
    sizes = dict(codes=12, classes=9, width=32, depth=2, heads=4)
    random = np.random.default_rng(1)
    tokens = random.integers(0, 13, (3, 16))
    tokens[0] = 12
    labels = np.array([0, 8, 9])
    logits = halton_logits(transformer, tokens, labels, **sizes)
    pictures = random.random((2, 8, 8, 3))
    ids = llamagen.tokens(pictures)
    images = llamagen.images(ids, 4)
    compiled = {f'_orig_mod.{key}': x for key, x in transformer.items()}
    buffer = {'quantize.codebook_used': np.zeros(65536, np.float32)}
    files = {
      'halton': {'iter': 7, 'model_state_dict': compiled},
      'llamagen': {'model': {**llamagen.w, **buffer}},
    }
    for kind, held in files.items():
      torch_files.save_zip(self.folder / f'{kind}.pth', held)
    config = configs.load(
      'in384_halton.py',
      {
        'data.image_size': 8,
        'data.num_classes': 9,
        'nat.width': 32,
        'nat.depth': 2,
        'nat.num_heads': 4,
        'nat.init_from': self.convert('halton', self.folder / 'halton.pth'),
        'tokenizer.init_from': self.convert(
          'llamagen', self.folder / 'llamagen.pth'
        ),
        'tokenizer.codebook_size': 12,
        'tokenizer.code_width': 6,
        'tokenizer.base_width': 8,
        'tokenizer.width_multipliers': (1, 2),
        'tokenizer.num_res_blocks': 1,
        'tokenizer.num_groups': 4,
        'sample.classes': (3, 8),
        'sample.num_steps': 4,
      },
    )
    experiment = Experiment(config, self.folder)
    generator = experiment.generator()
    _, ours = jax.jit(generator.nat.apply)(
      {'params': generator.nat_params}, tokens, labels
    )
    # The mask's column is cut off, which the original could draw.
    np.testing.assert_allclose(ours, logits[..., :12], rtol=1e-4, atol=1e-4)
    self.assertGreater(np.abs(logits).max(), 1)
    np.testing.assert_array_equal(generator.encode(pictures), ids)
    np.testing.assert_allclose(generator.decode(ids), images, atol=1e-5)
    self.assertGreater(np.ptp(images), 0.5)
    # The command: what the library draws, decoded by the formulas.
    sample.run(experiment)
    drawn = generator.sample([3, 8], 4, config.sample.seed, 'halton')
    expected = llamagen.images(drawn.tokens, 4)
    for index, label in enumerate((3, 8)):
      found = self.picture(f'{index:05d}-class{label}.png')
      np.testing.assert_allclose(found, expected[index], atol=1 / 255)
    self.assertTrue(generator.schedule('halton', 4).guided)
    self.assertTrue(generator.schedule('halton', 4).options.rolled)
    # One folder of it, and back to their keys.
    generator.save(self.folder / 'folder')
    again = load(self.folder / 'folder', compile_cache=False)
    np.testing.assert_array_equal(
      again.sample([3, 8], 4, config.sample.seed, 'halton').tokens, drawn.tokens
    )
    for kind, held in (('halton', transformer), ('llamagen', llamagen.w)):
      back = self.folder / f'{kind}.safetensors'
      cli.reverse(kind, str(self.folder / kind), str(back))
      arrays = load_file(back)
      self.assertContainsSubset(held, arrays)
      for key, value in held.items():
        np.testing.assert_array_equal(arrays[key], value, key)

  def test_published_sizes(self):
    config = configs.load('in384_halton.py')
    for network, expected in (('nat', 479_984_641), ('tokenizer', 71_883_403)):
      module, inputs = networks.module_and_inputs(config, network)
      shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
      sizes = [int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)]
      self.assertEqual(sum(sizes), expected)
      self.assertNotIn('no published', kinds.release_of(expected))
    self.assertEqual(networks.nat_module(config).num_tokens, 24**2)
    # The sizes of these are in `convert_test` and `convert_layout_test`.
    for name, num_tokens in (('in256_maskgit', 256), ('in512_maskgit', 1024)):
      config = configs.load(f'{name}.py')
      self.assertEqual(
        networks.nat_module(config), MaskGITTransformer(1024, 1000, num_tokens)
      )
      self.assertEqual(networks.tokenizer_module(config), VQGAN(1024, 256))

  def test_they_are_not_trained(self):
    config = configs.load('in384_halton.py')
    experiment = Experiment(config, self.folder)
    with self.assertRaisesRegex(UserError, 'network=halton is not trained'):
      nat.check_config(experiment)
    with self.assertRaisesRegex(UserError, 'network=llamagen is not trained'):
      tokenizer.check_config(experiment)


if __name__ == '__main__':
  absltest.main()
