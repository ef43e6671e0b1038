"""Finding categories in UPMC Food-101: pictures of dishes, titles of web pages.

  adanat --config=food101_gcd \
    --config.data.path=food101/images/train \
    --config.data.annotations=food101/texts/train_titles.csv \
    --config.evaluate.clip.image.init_from=weights/clip_image \
    --config.evaluate.clip.text.init_from=weights/clip_text

The folder and the table are those of the copies in circulation: a folder of
pictures for each class, and picture, title and class in the columns of a .csv
file without a header. docs/discovery.md says what is known of the protocol.
DINO instead of CLIP's pictures: --config.discover.image.network=reward with
--config.judges.reward.init_from. This has not been run on the data themselves.
"""

import pathlib

import ml_collections

from adanat_jax.experiment import config as config_lib

_EMOJI = pathlib.Path(__file__).with_name('emoji_gcd.py')


def get_config() -> ml_collections.ConfigDict:
  """The configuration; every field can be overridden by a flag."""
  config = config_lib.load(str(_EMOJI))
  config.unlock()
  data = config.data
  data.path = ''
  data.label_column = ''
  data.image_size = 224
  data.mirror = True
  # Pages have empty titles, and some pictures cannot be read.
  data.max_corrupt_share = 0.02
  config.evaluate.clip.tower = 'ViT-B/32'
  # DINO's ViT-S/16, where it is named.
  config.judges.reward.update(
    image_size=224, normalisation='imagenet', patch_size=16, width=384, depth=12
  )
  config.judges.reward.update(num_heads=6, hooks=(2, 5, 8, 11))

  discover = config.discover
  discover.least_items = 1
  discover.num_splits = 1
  # As published, all features and SimGCD's sizes.
  discover.image.update(network='clip', width=0, least_crop=0.77, jitter=0.0)
  discover.text.update(network='clip', width=0)
  discover.views = 4
  discover.update(width=512, hidden_width=2048, projection_width=256)
  discover.update(num_epochs=200, warmup_epochs=30, entropy_weight=1.0)
  discover.kmeans_inits = 100
  return config
