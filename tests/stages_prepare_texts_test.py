"""Captions to prepared sets: their records, states, and captions alone."""

from __future__ import annotations

import pathlib
from unittest import mock

from absl.testing import absltest
import numpy as np
import tensorflow_datasets as tfds

from adanat_jax.data import prepared
from adanat_jax.errors import UserError
from adanat_jax.experiment import texts
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.stages import prepare
from support import raw_files, small_weights
from support.preparing import make_config, tokenize, write_tokenizer


class CaptionsTest(absltest.TestCase):
  """Sets of images with several captions, states stored or not."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls().create_tempdir('captions').full_path)
    cls.raw = raw_files.coco(cls.root / 'coco', count=5)
    prompts = raw_files.cc3m_prompts(cls.root)
    cls.prompts = prompts.captions
    weights = {'text__init_from': str(cls.root / 'text')}
    cls.config = make_config(
      cls.root,
      'coco256',
      data__source='coco',
      data__path=str(cls.raw.path),
      data__annotations=str(cls.raw.annotations),
      data__held_out=0,
      **weights,
    )
    write_tokenizer(cls.root / 'tokenizer', cls.config)
    small_weights.text(cls.config, cls.root)
    # A table of images for training, captions alone for validation.
    cls.without_images = make_config(
      cls.root,
      'cc3m256',
      data__path=str(raw_files.cc3m_tsv(cls.root).path),
      data__validation_path=str(prompts.path),
      data__held_out=0,
      data__text_embeddings='compute',
      **weights,
    )
    with mock.patch.object(texts, 'tokenize', tokenize):
      prepare.run(Experiment(cls.config, cls.root / 'stored'))
      prepare.run(Experiment(cls.without_images, cls.root / 'computed'))

  def test_every_caption_has_a_record_with_its_states(self):
    directory = self.root / 'stored' / 'prepare'
    source = tfds.builder_from_directory(directory).as_data_source('train')
    found: dict[str, list[str]] = {}
    for record in source:
      caption = record['caption'].decode()
      found.setdefault(record['key'].decode(), []).append(caption)
    self.assertEqual(
      {key: tuple(captions) for key, captions in found.items()},
      {
        key: tuple(caption.strip() for caption in captions)
        for key, captions in self.raw.captions.items()
      },
    )
    examples = Experiment(self.config, self.root / 'stored').examples('train')
    self.assertLen(examples, 2 * len(source))
    places = np.array([0, len(source) - 1])
    rows = examples.take(places)
    module, params = Experiment(self.config, 'unused').network('text')
    ids = tokenize(None, [source[i]['caption'].decode() for i in places])
    states, embedding = texts.conditions(module, params, {'ids': ids})
    np.testing.assert_allclose(rows['states'], states, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(rows['embedding'], embedding, rtol=1e-5)
    self.assertEqual(rows['states'].dtype, np.float16)

  def test_the_null_condition_is_stored_too(self):
    examples = prepared.PreparedExamples(
      self.root / 'stored' / 'prepare', 'train'
    )
    with mock.patch.object(texts, 'tokenize', tokenize):
      expected = texts.null_states(Experiment(self.config, 'unused'))
    np.testing.assert_allclose(
      examples.null_states(), expected, rtol=2e-3, atol=2e-3
    )

  def test_ids_are_enough_where_states_are_computed(self):
    directory = self.root / 'computed' / 'prepare'
    self.assertFalse((directory / 'null_states.npy').exists())
    examples = prepared.PreparedExamples(directory, 'train')
    rows = examples.take(np.arange(len(examples)))
    self.assertCountEqual(rows, ['tokens', 'ids'])
    captions = examples.captions(np.arange(len(examples)))
    np.testing.assert_array_equal(rows['ids'], tokenize(None, captions))

  def test_captions_alone_can_be_asked_for_but_have_no_tokens(self):
    workdir = self.root / 'computed'
    prompts = Experiment(self.without_images, workdir).examples(
      'test', 'prompts'
    )
    self.assertLen(prompts, len(self.prompts))
    captions = prompts.captions(np.arange(len(prompts)))
    self.assertEqual(captions, [text for (text,) in self.prompts.values()])
    with self.assertRaisesRegex(UserError, 'captions alone, no images'):
      Experiment(self.without_images, workdir).examples('test')


if __name__ == '__main__':
  absltest.main()
