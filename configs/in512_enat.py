"""ENAT-L on ImageNet 512: its published size, recipe and schedule.

  python -m adanat_jax.main --config=configs/in512_enat.py \
      --workdir=runs/sample --config.mode=sample \
      --config.nat.init_from=weights/enat-l-512 \
      --config.tokenizer.init_from=weights/vqgan \
      --config.sample.classes=207,360

samples from published weights (docs/weights.md). The tokenizer is that of 256
pixels. Other uses, presets and sources are those of in256_enat.py. ENAT-B and S
are not published at this size. Nobody has run this file at full size.
"""

import pathlib

import ml_collections

from adanat_jax.experiment import config as config_lib

PRESETS = ('default', 'mini', 'tiny')

_IN256 = pathlib.Path(__file__).with_name('in256_enat.py')


def get_config(preset: str = 'default') -> ml_collections.ConfigDict:
  """The configuration of a preset; every field can be overridden by a flag."""
  config = config_lib.load(f'{_IN256}:{preset}')
  config.unlock()
  config.sample.policy = 'enat_512'
  config.evaluate.policies = ('learned', 'enat_512')
  if preset == 'default':
    config.data.image_size = 512
    # ENAT README: the rate is proportional to the batch.
    config.nat.batch_size = 512
    config.nat.learning_rate = 1e-4
    # Our choice, not tried, for one GPU of 80 GB and up to 16 devices: see
    # in512.py.
    config.nat.micro_batches = 32
    config.policy.rollout_size = 64
    config.policy.ppo.micro_batches = 64
    config.prepare.batch_size = 8
    config.tokenizer.batch_size = 16
    # The paper measures 50,000 images, the README's command 5,000.
    config.evaluate.benchmark = 'imagenet512'
    # Our choice, not tried: half of 4,096 trajectories. Their features take 34
    # GB in bfloat16, and an ENAT's features cannot be recomputed.
    config.policy.batch_size = 2048
    config.policy.rollout_dtype = 'bfloat16'
    config.sample.classes = (207, 360)
  return config
