"""Google's MaskGIT on ImageNet 256, sampled from its published weights.

  python -m adanat_jax.convert --kind=maskgit_transformer \
      --input=maskgit_imagenet256_checkpoint --output=weights/maskgit
  python -m adanat_jax.convert --kind=maskgit_tokenizer \
      --input=tokenizer_imagenet256_checkpoint --output=weights/maskgit-vq
  python -m adanat_jax.main --config=configs/in256_maskgit.py \
      --workdir=runs/maskgit --config.mode=sample \
      --config.nat.init_from=weights/maskgit \
      --config.tokenizer.init_from=weights/maskgit-vq \
      --config.sample.classes=207,360

decodes in 8 steps, as the paper does: the cosine curve, the masking temperature
falling from 4.5 to 0, tokens drawn at temperature 1, unguided, for the network
knows no null class. Any other unguided schedule goes by
--config.sample.policy='NAME'. --config.mode=evaluate with the fields of
in256.py measures them in the published protocol. The network is not trained
here; a policy on top of it is, as in256.py says, without guidance.

Sources: google-research/maskgit maskgit/configs/maskgit_class_cond_config.py,
maskgit/inference.py and README; arXiv 2202.04200 for 8 steps (12 at 512
pixels). Everything that is not set here is as in in256.py. Nobody has run this
file at full size.
"""

import pathlib

import ml_collections

from adanat_jax.experiment import config as config_lib

_IN256 = pathlib.Path(__file__).with_name('in256.py')


def get_config() -> ml_collections.ConfigDict:
  """The configuration; every field can be overridden by a flag."""
  config = config_lib.load(str(_IN256))
  config.unlock()
  nat = config.nat
  nat.network = 'maskgit'
  nat.width = 768
  nat.depth = 24
  nat.num_heads = 16
  nat.mlp_ratio = 4
  # Checkpoints of --kind=maskgit_transformer and --kind=maskgit_tokenizer.
  nat.init_from = ''
  config.tokenizer.init_from = ''
  config.policy.guided = False
  config.evaluate.policies = ('maskgit',)
  config.sample.policy = 'maskgit'
  config.sample.num_steps = 8
  return config
