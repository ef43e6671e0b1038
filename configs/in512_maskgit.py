"""Google's MaskGIT on ImageNet 512, sampled from its published weights.

As in256_maskgit.py, with the files of 512 pixels (their tokenizer is another
one, of the same sizes) and 12 steps. Nobody has run this file at full size.
"""

import pathlib

import ml_collections

from adanat_jax.experiment import config as config_lib

_IN256 = pathlib.Path(__file__).with_name('in256_maskgit.py')


def get_config() -> ml_collections.ConfigDict:
  """The configuration; every field can be overridden by a flag."""
  config = config_lib.load(str(_IN256))
  config.unlock()
  config.data.image_size = 512
  config.prepare.batch_size = 8
  config.evaluate.batch_size = 1
  config.evaluate.benchmark = 'imagenet512'
  config.policy.num_steps = (12,)
  # See in512.py.
  config.policy.rollout_size = 64
  config.policy.ppo.micro_batches = 64
  config.sample.num_steps = 12
  config.sample.classes = (207, 360)
  return config
