"""AdaNAT-S on MS-COCO: text to images of 256 pixels. Our choice throughout.

The paper gives a result (FID 5.75 at T = 8) and neither a config, nor weights,
nor the text encoder. This file uses AdaNAT-S with the sizes of in256_s.py,
conditioned on the text tower of OpenAI's CLIP ViT-L/14: U-ViT, whose COCO
setting the paper compares with, uses that tower, and the original's network
expects its width of 768 by default. Use it as cc3m256.py. Only CLIP and the
tokenizer have published weights to convert.
"""

import pathlib

import ml_collections

from adanat_jax.experiment import config as config_lib

PRESETS = ('default', 'mini', 'tiny')

_CC3M = pathlib.Path(__file__).with_name('cc3m256.py')


def get_config(preset: str = 'default') -> ml_collections.ConfigDict:
  """The configuration of a preset; every field can be overridden by a flag."""
  config = config_lib.load(f'{_CC3M}:{preset}')
  config.unlock()
  # As on ImageNet: AutoNAT's author says that COCO differs only in its
  # condition (LeapLabTHU/ImprovedNAT, issue 2).
  config.nat.mask_ratio = 'beta'
  config.policy.residual = 'none'
  if preset != 'tiny':
    config.data.source = 'coco'
    config.evaluate.benchmark = 'mscoco'
    config.evaluate.reference_split = 'test'
    config.evaluate.precision_recall = 10_000
  if preset == 'mini':
    config.evaluate.precision_recall = 8
  if preset == 'default':
    config.nat.width = 512
    config.nat.depth = 12
    config.nat.num_heads = 8
    config.nat.num_steps = 500_000
    config.nat.learning_rate = 4e-4
    # openai/clip-vit-large-patch14.
    config.text.width = 768
    config.text.depth = 12
    config.text.num_heads = 12
    config.text.mlp_width = 3072
    config.text.projection_width = 768
    config.text.activation = 'quick_gelu'
    config.policy.iterations = 1000
    config.policy.evaluate_every = 25
    config.policy.discriminator.batch_size = 1024
    config.policy.discriminator.held_out = 1024
  return config
