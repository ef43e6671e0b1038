"""Key maps: exact both ways, the published keys, every mistake named."""

from __future__ import annotations

import math

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.convert import (
  discriminator,
  inception,
  layout,
  maskgit,
  nat,
  policy,
  vit,
  vqgan,
)
from adanat_jax.errors import UserError
from adanat_jax.models import (
  discriminator as discriminator_model,
  inception as inception_model,
  nat as nat_model,
  policy as policy_model,
  vit as vit_model,
  vqgan as vqgan_model,
)
from support.random_weights import random_variables

_IDS = np.zeros((1,), np.int32)


def _published(module, *inputs):
  """Their arrays of a full-size network; broadcast zeros take no memory."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  return jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)


class PublishedKeysTest(parameterized.TestCase):
  """Counts and shapes as the published files have them."""

  def check(self, arrays, count, size, **shapes):
    self.assertLen(arrays, count)
    self.assertEqual(sum(math.prod(x.shape) for x in arrays.values()), size)
    for key, shape in shapes.items():
      self.assertEqual(arrays[key.replace('__', '.')].shape, shape)

  def test_nat_l(self):
    module = nat_model.NAT(1024, 256, 768, 24, 8, num_classes=1000)
    tokens = np.zeros((1, 256), np.int32)
    arrays = nat.FAMILY.to_theirs(_published(module, tokens, _IDS)['params'])
    self.check(
      arrays,
      314,
      193_655_297,
      in_blocks__11__attn__qkv__weight=(2304, 768),
      out_blocks__0__skip_linear__weight=(768, 1536),
      mlm_layer__bias=(1, 1, 1025),
      context_embed__position_embeddings__weight=(1, 768),
    )
    self.assertEqual(nat.infer(arrays, num_heads=8), module)

  def test_nat_text(self):
    module = nat_model.NAT(1024, 256, 1152, 28, 16, text_width=1280)
    text = np.zeros((1, 77, 1280), np.float32)
    tokens = np.zeros((1, 256), np.int32)
    arrays = nat.FAMILY.to_theirs(_published(module, tokens, text)['params'])
    self.check(arrays, 360, 503_628_929, context_embed__weight=(1152, 1280))
    self.assertEqual(nat.infer(arrays, num_heads=16), module)

  def test_policy(self):
    module = policy_model.PolicyNetwork(4, 16)
    features = np.zeros((1, 256, 768), np.float32)
    arrays = policy.FAMILY.to_theirs(
      _published(module, features, _IDS)['params']
    )
    self.check(
      arrays,
      22,
      11_876_484,
      dw_conv__weight=(512, 1, 3, 3),
      pw_conv__weight=(128, 512, 1, 1),
      linear1__weight=(1024, 8192),
      adaLN2__adaLN_modulation__1__weight=(2048, 512),
    )
    self.assertEqual(policy.infer(arrays), module)

  @parameterized.parameters(
    (1, 768, 11_874_945),
    (4, 1152, 12_073_092),
    (1, 1152, 12_071_553),
    (4, 512, 11_482_756),
  )
  def test_policy_of_each_width(self, num_outputs, width, size):
    module = policy_model.PolicyNetwork(num_outputs, 16)
    features = np.zeros((1, 256, width), np.float32)
    arrays = policy.FAMILY.to_theirs(
      _published(module, features, _IDS)['params']
    )
    # Features of the network's own width need no projection.
    self.check(arrays, 20 if width == 512 else 22, size)

  def test_vqgan(self):
    module = vqgan_model.VQGAN(1024, 256)
    images = np.zeros((1, 16, 16, 3), np.float32)
    arrays = vqgan.FAMILY.to_theirs(_published(module, images)['params'])
    self.check(
      arrays,
      168,
      54_515_587,
      encoder__down__2__block__0__nin_shortcut__weight=(256, 256, 1, 1),
      decoder__up__4__upsample__conv__weight=(512, 512, 3, 3),
      quantize__embedding__weight=(1024, 256),
    )
    self.assertEqual(vqgan.infer(arrays), module)

  def test_tokenizer_of_maskgit(self):
    module = vqgan_model.VQGAN(1024, 256)
    images = np.zeros((1, 16, 16, 3), np.float32)
    params = _published(module, images)['params']
    arrays = maskgit.TOKENIZER.to_theirs(params)
    self.check(arrays, 168, 54_515_587)
    for key, shape in (
      ('encoder/Conv_1/kernel', (1, 1, 512, 256)),
      ('encoder/ResBlock_4/Conv_2/kernel', (1, 1, 256, 256)),
      ('decoder/ResBlock_8/Conv_2/kernel', (1, 1, 128, 128)),
      ('decoder/Conv_4/kernel', (3, 3, 128, 128)),
    ):
      self.assertEqual(arrays[key].shape, shape, key)

  def test_inception(self):
    images = np.zeros((1, 299, 299, 3), np.float32)
    arrays = inception.FAMILY.to_theirs(
      _published(inception_model.InceptionV3(), images)['params']
    )
    # The published count holds the weights alone.
    learned = {k: x for k, x in arrays.items() if '.running_' not in k}
    self.check(learned, 284, 23_850_960, fc__weight=(1008, 2048))
    self.check(arrays, 472, 23_850_960 + 34_432)

  def test_dino(self):
    module = vit_model.VisionTransformer(224, 16, 384, 12, 6)
    images = np.zeros((1, 224, 224, 3), np.float32)
    arrays = vit.FAMILY.to_theirs(_published(module, images)['params'])
    self.check(
      arrays,
      150,
      21_665_664,
      cls_token=(1, 1, 384),
      pos_embed=(1, 197, 384),
      patch_embed__proj__weight=(384, 3, 16, 16),
      blocks__11__mlp__fc1__weight=(1536, 384),
    )
    self.assertEqual(vit.infer(arrays, num_heads=6), module)

  @parameterized.parameters(
    (
      (discriminator_model.DiscriminatorHeads(num_classes=1000), _IDS),
      (108, 10_285_440),
      {
        'mapping__embed__weight': (512, 1000),
        'heads__4__main__1__fn__0__weight_orig': (384, 384, 9),
        'heads__4__main__1__fn__0__weight_v': (3456,),
        'heads__0__cmapper__weight': (64, 512),
      },
    ),
    (
      (discriminator_model.DiscriminatorHeads(), np.zeros((1, 1280), 'f')),
      (90, 7_917_440),
      {'heads__0__cmapper__weight': (64, 1280)},
    ),
  )
  def test_discriminator(self, network, counts, shapes):
    module, condition = network
    features = [np.zeros((1, 1, 384), np.float32)] * 5
    arrays = discriminator.FAMILY.to_theirs(
      _published(module, features, condition)
    )
    vectors = sum(
      math.prod(value.shape)
      for key, value in arrays.items()
      if key.endswith(('_u', '_v'))
    )
    self.check(arrays, counts[0], counts[1] + vectors, **shapes)
    self.assertEqual(discriminator.infer(arrays), (module, 5))


class RoundTripTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (
      'nat',
      nat,
      nat_model.NAT(5, 4, 8, 4, 2, num_classes=3, qkv_bias=True),
      (np.zeros((1, 4), np.int32), _IDS),
    ),
    (
      'policy',
      policy,
      policy_model.PolicyNetwork(2, 4, 8, 4, (12, 10)),
      (np.zeros((1, 16, 6), np.float32), _IDS),
    ),
    (
      'vqgan',
      vqgan,
      vqgan_model.VQGAN(5, 3, 4, (1, 2, 2), 1, 2, 1),
      (np.zeros((1, 4, 4, 1), np.float32),),
    ),
    (
      'vit',
      vit,
      vit_model.VisionTransformer(8, 4, 6, 2, 2, 1, num_outputs=3),
      (np.zeros((1, 8, 8, 1), np.float32),),
    ),
  )
  def test_exact(self, family, module, inputs):
    params = random_variables(module, *inputs)['params']
    arrays = family.FAMILY.to_theirs(params)
    back = family.FAMILY.to_ours(arrays, module)
    jax.tree.map(np.testing.assert_array_equal, back, params)

  def test_discriminator(self):
    module = discriminator_model.DiscriminatorHeads(3, 8, 2, 4, 3)
    features = [np.zeros((1, 1, 6), np.float32)] * 2
    variables = random_variables(module, features, _IDS)
    arrays = discriminator.FAMILY.to_theirs(variables)
    arrays['dino.model.model.cls_token'] = np.zeros((1, 1, 6))
    back = discriminator.FAMILY.to_ours(arrays, module)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


class MistakesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.module = nat_model.NAT(5, 4, 8, 2, 2, num_classes=3)
    tokens = np.zeros((1, 4), np.int32)
    params = random_variables(self.module, tokens, _IDS)['params']
    self.arrays = nat.FAMILY.to_theirs(params)

  def test_all_are_named_at_once(self):
    del self.arrays['norm.bias']
    self.arrays['mystery'] = np.zeros(1)
    self.arrays['token_emb.position_ids'] = np.zeros(4)
    self.arrays['mlm_layer.fc.weight'] = np.zeros((8, 9))
    with self.assertRaises(UserError) as caught:
      nat.FAMILY.to_ours(self.arrays, self.module)
    message = str(caught.exception)
    self.assertIn('1 missing: norm.bias', message)
    self.assertIn('1 unexpected: mystery', message)
    self.assertIn('mlm_layer.fc.weight is (8, 9), not (8, 8)', message)
    self.assertNotIn('position_ids', message)
    self.assertNotIn('\n', message)

  def test_other_weights(self):
    with self.assertRaisesRegex(UserError, 'not the weights of a NAT'):
      nat.infer({'conv.weight': np.zeros(3)}, num_heads=2)

  def test_stored_in_half(self):
    arrays = {k: v.astype(jnp.bfloat16) for k, v in self.arrays.items()}
    params = nat.FAMILY.to_ours(arrays, self.module)
    leaves = jax.tree.leaves(params)
    self.assertEqual({x.dtype for x in leaves}, {np.dtype(np.float32)})
    np.testing.assert_array_equal(
      params['norm']['scale'], arrays['norm.weight'].astype(np.float32)
    )

  def test_layouts(self):
    x = np.arange(24).reshape(1, 2, 3, 4)
    for lay in (layout.SAME, layout.CONV, layout.LEAD):
      ours = lay.to_ours(x)
      np.testing.assert_array_equal(lay.to_theirs(ours), x)
      self.assertEqual(lay.their_shape(ours.shape), x.shape)
    self.assertEqual(layout.CONV.to_ours(x).shape, (3, 4, 2, 1))


if __name__ == '__main__':
  absltest.main()
