"""ENAT on ImageNet 256: its published sizes, recipe and schedule.

From published weights (docs/weights.md),

  python -m adanat_jax.main --config=configs/in256_enat.py \
      --workdir=runs/sample --config.mode=sample \
      --config.nat.init_from=weights/enat-l \
      --config.tokenizer.init_from=weights/vqgan \
      --config.sample.classes=207,360

samples with the published schedule. From raw images, as in256.py,

  python -m adanat_jax.main --config=configs/in256_enat.py \
      --workdir=runs/in256_enat \
      --config.data.path=imagenet/train --config.data.validation_path=... \
      --config.tokenizer.init_from=weights/vqgan \
      --config.judges.reward.init_from=weights/dino \
      --config.evaluate.inception.init_from=weights/inception

prepares tokens, trains the network and then AdaNAT's policy for it (which
nobody has published), and compares that policy with ENAT's own schedule. For
ENAT alone, give --config.evaluate.policies=enat_256 from the first command on
and run the modes `prepare`, `nat` and `evaluate`. Presets:

  configs/in256_enat.py        ENAT-L, FID 2.79 at T = 8
  configs/in256_enat.py:base   ENAT-B, FID 3.53; its weights are not published
  configs/in256_enat.py:small  ENAT-S, of the ablations; weights not published
  configs/in256_enat.py:mini, :tiny  as in256.py's, for tests

Everything that is not set here is as in in256.py: the published recipe is
AutoNAT's, except for what `set_recipe` changes. Sources: LeapLabTHU/ENAT
README, train.py, utils.py, libs/nat_misc.py, libs/models.py, and table 7 of the
paper. Nobody has run this file at full size.
"""

import pathlib

import ml_collections

from adanat_jax.experiment import config as config_lib

PRESETS = ('default', 'base', 'small', 'mini', 'tiny')

_IN256 = pathlib.Path(__file__).with_name('in256.py')

# Table 7.
_FIELDS = ('width', 'encoder_depth', 'decoder_depth', 'num_heads')
_SIZES = {
  'default': (1024, 22, 2, 16),
  'base': (768, 15, 1, 8),
  'small': (366, 15, 1, 6),
  'mini': (32, 2, 1, 4),
  'tiny': (32, 2, 1, 4),
}


def get_config(preset: str = 'default') -> ml_collections.ConfigDict:
  """The configuration of a preset; every field can be overridden by a flag."""
  like = preset if preset in ('mini', 'tiny') else 'default'
  config = config_lib.load(f'{_IN256}:{like}')
  config.unlock()
  nat = config.nat
  nat.network = 'enat'
  nat.update(dict(zip(_FIELDS, _SIZES[preset], strict=True)))
  set_recipe(config)
  if like == 'default':
    # Our choice, not tried: a block takes twice the memory of NAT-L's, because
    # training masks the attention and computes keys of all tokens twice. For
    # one GPU of 80 GB, and up to 64 devices, which share copies where they have
    # 16 GB; 16 parts serve 128.
    nat.micro_batches = 32
    config.mesh.fsdp = 0
  return config


def set_recipe(config: ml_collections.ConfigDict) -> None:
  """Sets the fields in which ENAT differs from AutoNAT."""
  # The original draws one ratio, and one decision to reuse, for all examples of
  # a GPU, so that it can gather them: 8 or 16 of each in a step. Here they are
  # drawn for the whole batch. 'example', which masked attention allows, is not
  # published.
  config.nat.mask_ratio_per = 'batch'
  config.nat.reuse_probability = 0.5
  # The original drops 15 % of the labels where it loads them, and a tenth of
  # the rest in the network, but not in the forward that fills the cache. So the
  # cache sometimes contains a class that the network does not see. We drop 15 %
  # once, for both forwards.
  config.nat.condition_dropping = 0.15
  # sample.num_steps stays 8: settings for 4 steps are not published.
  config.sample.policy = 'enat_256'
  config.evaluate.policies = ('learned', 'enat_256')
  config.evaluate.num_buckets = 6
  # Each class equally often: 50 images.
  config.evaluate.labels = 'balanced'
