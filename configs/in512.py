"""AdaNAT-L on ImageNet 512. The network is not published: it is our choice.

The paper gives a result (FID 3.66 at T = 8) and neither a config nor weights.
Here the tokenizer of in256.py makes 32x32 tokens (it is fully convolutional,
and ENAT uses it at 512 too), and the NAT and the policy of AdaNAT-L see all
1024 of them. (The paper's 1.2 TFLOPs suggest a trunk that sees patches of
2x2 tokens; its code refuses that setting.) Everything else is as in in256.py,
including presets and use; there are no published weights to convert.
"""

import pathlib

import ml_collections

from adanat_jax.experiment import config as config_lib

PRESETS = ('default', 'mini', 'tiny')

_IN256 = pathlib.Path(__file__).with_name('in256.py')


def get_config(preset: str = 'default') -> ml_collections.ConfigDict:
  """The configuration of a preset; every field can be overridden by a flag."""
  config = config_lib.load(f'{_IN256}:{preset}')
  config.unlock()
  if preset == 'default':
    config.data.image_size = 512
    # Four times the tokens need eight times the parts, for one GPU of 80 GB.
    config.nat.micro_batches = 64
    # Parts a quarter as large as at 256 pixels, for one to 64 devices (one to
    # 16 with policy.preset=ours; 16 parts serve more).
    config.policy.rollout_size = 64
    config.policy.ppo.micro_batches = 64
    # Features take 48 GiB in bfloat16: one GPU of 80 GB computes them again.
    config.policy.rollout_features = 'auto'
    config.prepare.batch_size = 8
    # As many tokens as at 256 pixels, for up to 16 devices.
    config.tokenizer.batch_size = 16
    config.evaluate.benchmark = 'imagenet512'
    config.sample.classes = (207, 360)
  return config
