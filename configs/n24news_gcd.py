"""Finding categories in N24News: pictures of the news, with their captions.

  adanat --config=n24news_gcd \
    --config.data.path=n24news/images \
    --config.data.annotations=n24news/nytimes_dataset.json \
    --config.evaluate.clip.image.init_from=weights/clip_image \
    --config.evaluate.clip.text.init_from=weights/clip_text

The layout is that of the authors' script: a JSON list of objects, whose
`image_id` names <image_id>.jpg. Which of the texts MM-GCD reads is not known;
--config.data.text_column=headline or abstract reads another one. This has not
been run on the data themselves. food101_gcd.py has the sizes.
"""

import pathlib

import ml_collections

from adanat_jax.experiment import config as config_lib

_FOOD101 = pathlib.Path(__file__).with_name('food101_gcd.py')


def get_config() -> ml_collections.ConfigDict:
  """The configuration; every field can be overridden by a flag."""
  config = config_lib.load(str(_FOOD101))
  config.unlock()
  config.data.text_column = 'caption'
  config.data.label_column = 'section'
  return config
