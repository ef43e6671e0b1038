"""Programs that the compilers of TPUs and GPUs make, where these are installed.

pip install -e '.[targets]'
"""

import importlib.util
import os
import pathlib
import sys

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp

sys.path.append(str(pathlib.Path(__file__).parents[1] / 'benchmarks'))

import hlo
import programs
import targets

from adanat_jax.models import attention
from adanat_jax.runtime import sharding
from support import configs

# Before any test asks for a device: a JAX that looks for a GPU and finds none
# gives up its compiler.
jax.config.update('jax_platforms', 'cpu')

_COMPILERS = {'v5e-8': 'libtpu', 'h100': 'jax_cuda13_plugin'}

# As a TPU's compiler writes it: no count of trips, and memory S(1) on the chip.
_LOOP = """
%half (p: f32[64,32]) -> bf16[64,32] {
  %p = f32[64,32]{1,0} parameter(0)
  ROOT %h = bf16[64,32]{1,0} convert(%p)
}

%body (s: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %s = (s32[]{:T(128)}, f32[64,32]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %x = f32[64,32]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %f = bf16[64,32]{1,0:T(8,128)(2,1)} fusion(%x), kind=kLoop, calls=%half
  %g = f32[64,32]{1,0:T(8,128)S(1)} convert(%f)
  %c = (f32[64,32]{1,0:T(8,128)S(1)}, f32[64,32]{1,0:T(8,128)}, u32[]{:S(2)}) \
copy-start(%x)
  %d = ((f32[64,32]{1,0}), f32[16,32]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) \
slice-start(%x), slice={[0:16], [0:32]}
  %r = f32[64,32]{1,0:T(8,128)} all-reduce(%g), to_apply=%half
  ROOT %t = (s32[]{:T(128)}, f32[64,32]{1,0:T(8,128)}) tuple(%i, %r)
}

%cond (s: (s32[], f32[64,32])) -> pred[] {
  %n = s32[]{:T(128)} constant(8)
  %s = (s32[]{:T(128)}, f32[64,32]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (a: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %a = (s32[]{:T(128)}, f32[64,32]{1,0:T(8,128)}) parameter(0)
  ROOT %w = (s32[]{:T(128)}, f32[64,32]{1,0:T(8,128)}) while(%a), \
condition=%cond, body=%body
}
"""


def _mesh(test, target):
  """The devices of a target, or skips."""
  compiler = _COMPILERS[target]
  if importlib.util.find_spec(compiler) is None:
    test.skipTest(f"{compiler} is not installed: pip install -e '.[targets]'")
  for name, value in targets.ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  return sharding.make_mesh(devices=targets.TARGETS[target].devices())


class TextTest(absltest.TestCase):
  def test_bytes_of_a_loop(self):
    half, size = 64 * 32 * 2, 64 * 32 * 4
    found = targets.read(_LOOP, targets.TARGETS['v5e-8'], 0)
    self.assertEqual(found['exchanged'], {'all-reduce': 8 * size})
    # The fusion, the convert to memory on the chip, a copy and a quarter to
    # there, the sum from there.
    self.assertEqual(
      found['moved'], 8 * ((size + half) + half + size + size // 4 + size)
    )
    fused = [x.opcode for x in hlo.instructions(_LOOP) if x.fused]
    self.assertEqual(fused, ['parameter', 'convert'])

  def test_a_line_through_two_networks(self):
    few = {'temporaries': 30, 'exchanged': {'all-reduce': 5}, 'target': 'h100'}
    more = {'temporaries': 34, 'exchanged': {'all-reduce': 9}, 'target': 'h100'}
    # 2 and 4 blocks, then 24: eleven times the difference.
    self.assertEqual(
      targets.extended(few, more, (24 - 2) / (4 - 2)),
      {'temporaries': 74, 'exchanged': {'all-reduce': 49}, 'target': 'h100'},
    )

  def test_networks_of_published_weights_have_programs(self):
    names = {name.split('/')[0] for name in targets.PROGRAMS}
    published = {'in256_maskgit', 'in512_maskgit', 'in384_halton'}
    self.assertContainsSubset(published, names)
    config = targets.config_of(
      'in384_halton/sample, schedule', {'nat.depth': 2}
    )
    target = targets.TARGETS['v5e-8']
    program = targets.KINDS['sample, schedule'](config, target, 8)
    # 1,024 tokens for each of 16 GiB, 576 an image; on eight devices.
    tokens = program.arguments[3]['tokens'].shape
    self.assertEqual(tokens, (8 * 28, 24 * 24))


class TargetsTest(parameterized.TestCase):
  @parameterized.parameters(*_COMPILERS)
  def test_sampling(self, target):
    mesh = _mesh(self, target)
    config = configs.load(
      'in256.py:mini',
      {'nat.dtype': 'bfloat16', 'tokenizer.dtype': 'bfloat16'},
    )
    program = programs.sampling_program(config, 16 * mesh.size)
    text = program.compile(mesh).as_text()
    self.assertEmpty(hlo.collectives(text))
    maps = [
      shape
      for x in hlo.instructions(text)
      for kind, shape in x.shapes
      if x.moved and kind == 'f32' and shape[-2:] == (17, 17)
    ]
    self.assertEmpty(maps)

  @parameterized.parameters(
    ('v5e-8', 600, ['tpu_custom_call']),
    ('h100', 33, ['__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward']),
  )
  def test_attention(self, target, length, expected):
    mesh = _mesh(self, target)

    def gradient(*qkv):
      loss = lambda *qkv: (
        attention.attend(*qkv, implementation='auto').astype(jnp.float32).sum()
      )
      return jax.value_and_grad(loss, (0, 1, 2))(*qkv)

    shape = jax.ShapeDtypeStruct((mesh.size, length, 2, 64), jnp.bfloat16)
    program = programs.Program(gradient, (shape,) * 3, (0, 0, 0), ())
    found = list(hlo.instructions(program.compile(mesh).as_text()))
    self.assertContainsSubset(expected, {x.target for x in found})
    gathered = {x.opcode for x in found} & {'all-gather', 'all-to-all'}
    self.assertEmpty(gathered)


if __name__ == '__main__':
  absltest.main()
