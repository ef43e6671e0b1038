"""CLIP's tokens against open_clip's, and the sizes of the published towers."""

import json
import pathlib
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np

from adanat_jax.convert import layout
from adanat_jax.data import clip_tokens
from adanat_jax.errors import UserError
from adanat_jax.models import clip

DATA = pathlib.Path(__file__).parent / 'data'

try:
  import ftfy  # noqa: F401
  import instant_clip_tokenizer  # noqa: F401

  HAS_TOKENIZER = True
except ImportError:
  HAS_TOKENIZER = False


class TokensTest(parameterized.TestCase):
  @absltest.skipUnless(HAS_TOKENIZER, "needs the extra 'text'")
  def test_ids_are_those_of_open_clip(self):
    case = json.loads((DATA / 'clip_tokens.json').read_text())
    ids = clip_tokens.tokenize(case['texts'])
    self.assertEqual(ids.dtype, np.int32)
    np.testing.assert_array_equal(ids, case['ids'])

  @absltest.skipUnless(HAS_TOKENIZER, "needs the extra 'text'")
  def test_empty_text_and_no_texts(self):
    np.testing.assert_array_equal(
      clip_tokens.tokenize([''], 4), [[49406, 49407, 0, 0]]
    )
    self.assertEqual(clip_tokens.tokenize([]).shape, (0, 77))

  def test_vocabularies_of_others_are_refused(self):
    path = self.create_tempfile('tokenizer.json', '{}').full_path
    try:
      import tokenizers
    except ImportError:
      self.skipTest("needs the extra 'text'")
    with self.assertRaisesRegex(UserError, 'cannot read the vocabulary'):
      clip_tokens.tokenize(['a cat'], vocabulary=path)
    small = tokenizers.Tokenizer(tokenizers.models.BPE({'a': 0}, []))
    small.save(path)
    with self.assertRaisesRegex(UserError, 'has 1 tokens; CLIP has 49408'):
      clip_tokens.tokenize(['a cat'], vocabulary=path)

  @absltest.skipUnless(HAS_TOKENIZER, "needs the extra 'text'")
  def test_a_vocabulary_file_encodes(self):
    try:
      import tokenizers
    except ImportError:
      self.skipTest("needs the extra 'text'")
    words = {f'word{i}': i for i in range(49408)}
    library = tokenizers.Tokenizer(
      tokenizers.models.WordLevel(words, unk_token='word0')
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    path = self.create_tempfile('tokenizer.json').full_path
    library.save(path)
    np.testing.assert_array_equal(
      clip_tokens.tokenize(['word7  word9', 'word5 ' * 9], 5, path),
      [[49406, 7, 9, 49407, 0], [49406, 5, 5, 5, 49407]],
    )

  def test_absent_package_is_named(self):
    with (
      mock.patch.dict('sys.modules', {'ftfy': None}),
      self.assertRaisesRegex(UserError, r'ftfy.*adanat_jax\[text\]'),
    ):
      clip_tokens.tokenize(['a cat'])


class TowerTest(parameterized.TestCase):
  @parameterized.parameters(
    ('ViT-bigG/14', 694_659_840, 1280), ('ViT-L/14', 123_650_304, 768)
  )
  def test_published_sizes(self, name, count, width):
    tower, _ = clip.TOWERS[name]
    ids = np.zeros((2, 77), np.int32)
    text, variables = jax.eval_shape(
      lambda: tower.init_with_output(jax.random.key(0), ids)
    )
    self.assertEqual(text.states.shape, (2, 77, width))
    self.assertEqual(text.pooled.shape, (2, width))
    sizes = [int(np.prod(x.shape)) for x in jax.tree.leaves(variables)]
    self.assertEqual(sum(sizes), count)

  def test_a_token_does_not_see_later_ones(self):
    tower = clip.CLIPText(16, 2, 2, 32, 8, 'gelu', 20, 6)
    ids = np.array([[18, 3, 4, 19, 0, 0], [18, 3, 4, 19, 7, 0]], np.int32)
    text, _ = jax.jit(tower.init_with_output)(jax.random.key(0), ids)
    np.testing.assert_array_equal(text.pooled[0], text.pooled[1])
    np.testing.assert_array_equal(text.states[0, :4], text.states[1, :4])
    self.assertGreater(np.abs(text.states[0, 4] - text.states[1, 4]).max(), 0)

  @parameterized.parameters(
    (dict(activation='relu'), 'gelu'), (dict(num_heads=3), 'num_heads=3')
  )
  def test_mistakes_are_named(self, fields, word):
    fields = {
      'width': 16, 'depth': 1, 'num_heads': 2, 'mlp_width': 32,
      'projection_width': 8, 'activation': 'gelu', **fields,
    }  # fmt: skip
    with self.assertRaisesRegex(UserError, word):
      layout.shapes(clip.CLIPText(**fields), np.zeros((1, 77), np.int32))


if __name__ == '__main__':
  absltest.main()
