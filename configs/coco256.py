"""AdaNAT-S on MS-COCO: text to images of 256 pixels. Our choice throughout.

The paper gives a result (FID 5.75 at T = 8) and neither a config, nor weights,
nor the text encoder. Here it is AdaNAT-S as in256_s.py chooses it, conditioned
on the text tower of OpenAI's CLIP ViT-L/14, because U-ViT, whose COCO setting
the paper compares with, uses that one and the original's network takes its
width of 768 by default. Used as cc3m256.py; there are no weights to convert
but CLIP's and the tokenizer's.
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
  # As on ImageNet: AutoNAT's author says that COCO differs in its condition
  # alone (LeapLabTHU/ImprovedNAT, issue 2).
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
