"""Halton-MaskGIT-Large on ImageNet 384, sampled from its published weights.

  python -m adanat_jax.convert --kind=halton \
      --input=ImageNet_384_large.pth --output=weights/halton
  python -m adanat_jax.convert --kind=llamagen \
      --input=vq_ds16_c2i.pt --output=weights/llamagen
  python -m adanat_jax.main --config=configs/in384_halton.py \
      --workdir=runs/halton --config.mode=sample \
      --config.nat.init_from=weights/halton \
      --config.tokenizer.init_from=weights/llamagen \
      --config.sample.classes=207,360

decodes in 32 steps by the Halton schedule with README's settings: guidance 2,
logits multiplied by 1 to 1.2, the order rolled for each image. Any other
schedule goes by --config.sample.policy='NAME'. The networks are not trained
here; a policy on top of them is, as in256.py says.

Sources: valeoai/Halton-MaskGIT README, Config/base_cls2img.yaml,
Network/transformer.py, Trainer/abstract_trainer.py and cls_trainer.py;
FoundationVision/LlamaGen vq_model.py. Everything that is not set here is as in
in256.py. Nobody has run this file at full size.
"""

import pathlib

import ml_collections

from adanat_jax.experiment import config as config_lib

_IN256 = pathlib.Path(__file__).with_name('in256.py')


def get_config() -> ml_collections.ConfigDict:
  """The configuration; every field can be overridden by a flag."""
  config = config_lib.load(str(_IN256))
  config.unlock()
  config.data.image_size = 384
  tokenizer = config.tokenizer
  # VQ-16: 16384 codes of width 8.
  tokenizer.network = 'llamagen'
  tokenizer.codebook_size = 16384
  tokenizer.code_width = 8
  # Checkpoints of --kind=llamagen and --kind=halton.
  tokenizer.init_from = ''
  nat = config.nat
  nat.network = 'halton'
  nat.width = 1024
  nat.depth = 24
  nat.num_heads = 16
  nat.mlp_ratio = 4
  nat.init_from = ''
  config.prepare.batch_size = 16
  # Nobody has published figures in this protocol.
  config.evaluate.benchmark = ''
  config.evaluate.policies = ('halton',)
  config.evaluate.batch_size = 2
  config.policy.num_steps = (32,)
  config.sample.policy = 'halton'
  config.sample.num_steps = 32
  config.sample.classes = (207, 360)
  return config
