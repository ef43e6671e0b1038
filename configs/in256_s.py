"""AdaNAT-S on ImageNet 256. Its sizes are not published: these are our choice.

The paper gives results of AdaNAT-S but no sizes. Width 512, depth 12 (and the
middle block) and 8 heads are those of U-ViT-S, with which the paper's tables
compare it; the NAT then has 45.5 M parameters. Everything else is as in
in256.py, including presets and use. There are no published weights to convert,
but a NAT that was trained here, or converted from this layout, can sample.
"""

import pathlib

import ml_collections

from adanat_jax.experiment import config as config_lib

PRESETS = ('default', 'mini', 'tiny')

_LARGE = pathlib.Path(__file__).with_name('in256.py')


def get_config(preset: str = 'default') -> ml_collections.ConfigDict:
  """The configuration of a preset; every field can be overridden by a flag."""
  config = config_lib.load(f'{_LARGE}:{preset}')
  config.unlock()
  if preset == 'default':
    config.nat.width = 512
    config.nat.depth = 12
    config.nat.num_heads = 8
  return config
