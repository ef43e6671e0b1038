"""AdaNAT on CC3M: text to images of 256 pixels.

docs/cc3m.md goes from raw files to the published protocol. From published
weights alone, once converted,

  python -m adanat_jax.main --config=configs/cc3m256.py --workdir=runs/cc3m \
      --config.mode=sample \
      --config.nat.init_from=weights/nat-cc3m \
      --config.tokenizer.init_from=weights/vqgan \
      --config.text.init_from=weights/clip-big-g \
      --config.policy.init_from=weights/policy-cc3m \
      --config.sample.captions="'a lighthouse at dusk','two cats on a sofa'"

samples captions. Presets, and fields not explained here, are as in in256.py; in
:tiny the digits' classes replace captions. Sources: LeapLabTHU/AdaNAT
configs/cc3m_AdaNAT_muse.yaml, train.py and README; baaivision/MUSE-Pytorch
configs/cc3m_xl_vqf16_jax_2048bs_featset_CLIP_G.py for the NAT's training.
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
  # MUSE-Pytorch libs/muse.py: cos(pi/2 u) of uniform u.
  config.nat.mask_ratio = 'cosine'
  # AdaNAT README: --heu 1.
  config.policy.residual = 'published'
  if preset != 'tiny':
    _set_networks(config)
  if preset == 'mini':
    shrink(config)
  return config


def _set_networks(config: ml_collections.ConfigDict) -> None:
  """Sets the published sizes."""
  config.data.condition = 'text'
  # The authors' TSV files; 'webdataset' for what img2dataset writes.
  config.data.source = 'cc3m_tsv'

  nat = config.nat
  # cc3m_AdaNAT_muse.yaml.
  nat.width = 1152
  nat.depth = 28
  nat.num_heads = 16
  # MUSE-Pytorch published weights of 285,000 steps. Its weight decay, betas,
  # warm-up, smoothing, dropping of conditions, batch size and EMA are those
  # of in256.py.
  nat.num_steps = 285_000
  nat.learning_rate = 2e-4
  # Our choice: for one GPU of 80 GB, or 16 chips of 16 GB that share copies.
  nat.micro_batches = 32
  config.mesh.fsdp = 0

  config.text = text = ml_collections.ConfigDict()
  # 'clip' is a frozen tower of CLIP's; 'learned' a small transformer on words,
  # trained with the NAT; 'given' takes the vectors of text.vectors
  # (docs/own_images.md).
  text.network = 'clip'
  # Longest caption of a learned network, in words and signs, and one more for
  # its start; CLIP's tower has 77 tokens.
  text.num_positions = 77
  # The text tower of laion/CLIP-ViT-bigG-14-laion2B-39B-b160k. The states of
  # its 77 positions are the NAT's condition, those of '' the null condition.
  text.width = 1280
  text.depth = 32
  text.num_heads = 20
  text.mlp_width = 5120
  text.projection_width = 1280
  # 'gelu', or 'quick_gelu' for OpenAI's towers.
  text.activation = 'gelu'
  # As nat.dtype.
  text.dtype = 'auto'
  # Checkpoint of `python -m adanat_jax.convert --kind=clip_text`.
  text.init_from = ''
  # The tokenizer.json next to those weights, for platforms without a build of
  # instant-clip-tokenizer; empty to use that package.
  text.tokenizer = ''
  # Of 'given' alone: a .npz or safetensors file with the vectors of captions.
  text.vectors = ''

  # AdaNAT README: --max_training_timesteps 150, 'early stopping';
  # --batch_size 64 on each of 8 devices; --n_samples 30000. The captions'
  # embedding conditions the discriminator without a mapping network.
  config.policy.iterations = 150
  config.policy.evaluate_every = 10
  config.policy.discriminator.batch_size = 512
  config.policy.discriminator.mapping_layers = 0
  # Its validation set has captions and no images.
  config.policy.discriminator.held_out = 0
  config.evaluate.num_samples = 30_000
  config.evaluate.benchmark = 'cc3m'
  # The published reference statistics, fid_stats_cc3m_val.npz, are of the
  # validation images. The authors' list holds only the captions of these, so
  # there are no images to compute other statistics from, or to compare one by
  # one.
  config.evaluate.reference_split = 'test'
  config.evaluate.precision_recall = 0

  # Texts to sample; `sample.classes` means nothing here.
  config.sample.captions = ('a lighthouse at dusk', 'two cats on a sofa')


def shrink(config: ml_collections.ConfigDict) -> None:
  """Makes the sizes that `_set_networks` set small again."""
  config.nat.update(width=32, depth=2, num_heads=4, num_steps=8)
  config.nat.micro_batches = 2
  config.text.update(width=16, depth=1, num_heads=2, mlp_width=32)
  config.text.projection_width = 8
  config.policy.update(iterations=2, evaluate_every=1)
  config.policy.discriminator.batch_size = 16
  config.evaluate.update(num_samples=24, reference_split='train')
  config.sample.captions = ('a flower', 'a temple')
