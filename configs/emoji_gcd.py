"""Finding categories of emoji from their pictures and names, on a laptop.

  adanat --config=emoji_gcd

docs/discovery.md says how to make the folder of emoji and what comes of it. No
weights are needed: the encoder of pictures is trained on them without labels,
texts are placed by the words that they share. This file explains the fields of
`discover`; food101_gcd.py and n24news_gcd.py build on it. Presets:

  configs/emoji_gcd.py       everything, on as many splits and seeds
  configs/emoji_gcd.py:tiny  each kind of method once, in a minute, for tests
"""

import pathlib

import ml_collections

from adanat_jax.experiment import config as config_lib

PRESETS = ('default', 'tiny')

_IMAGE_FOLDER = pathlib.Path(__file__).with_name('image_folder.py')


def get_config(preset: str = 'default') -> ml_collections.ConfigDict:
  """The configuration of a preset; every field can be overridden by a flag."""
  config = config_lib.load(f'{_IMAGE_FOLDER}:quick')
  config.unlock()
  config.mode = 'discover'
  config.log_every = 500
  config.save_every = 2000

  data = config.data
  # Pictures with a text and a class each, in a table.
  data.source = 'pairs'
  data.path = 'emoji/train'
  # The table, a .csv, .json or .jsonl file; empty for metadata.jsonl or
  # metadata.csv in data.path.
  data.annotations = ''
  # Which of its columns are the text and the class; empty for usual names.
  data.text_column = ''
  data.label_column = 'subcategory'
  data.held_out = 0
  data.image_size = 32
  data.mirror = False
  # Each pair needs its picture and its text.
  data.max_corrupt_share = 0.0
  # The encoder of pictures learns without labels.
  config.judges.training = 'views'
  config.judges.measure.update(
    widths=(16, 32, 64, 96), feature_width=128, num_steps=1500
  )

  config.discover = discover = ml_collections.ConfigDict()
  # The methods that are compared (discovery/methods.py).
  discover.methods = (
    *('kmeans_image', 'kmeans_text', 'kmeans_both'),
    *('semi_kmeans_image', 'semi_kmeans_text', 'semi_kmeans_both'),
    *('gcd_image', 'gcd_text', 'simgcd_image', 'simgcd_text', 'simgcd_both'),
    *('late_fusion', 'joint', 'cross', 'mutual', 'multimodal_permuted'),
    'multimodal',
  )
  # Each method runs on so many divisions into known and new classes, with so
  # many seeds. Both may grow later.
  discover.num_splits = 5
  discover.num_seeds = 3
  # How many classes are looked for (K), and how many of them are known; 0 for
  # as many as there are, and for half of these.
  discover.num_classes = 0
  discover.num_known = 0
  # K is also estimated, trying numbers up to this one; 0 does not.
  discover.most_classes = 0
  # Share of the items of known classes that are labelled (published).
  discover.labelled_share = 0.5
  # Classes with fewer items are left out.
  discover.least_items = 10

  # The frozen encoder of pictures: 'measure' is trained by stage `judges` on
  # these pictures without labels, 'reward' is the network of judges.reward
  # (DINO's, by its init_from), 'clip' the tower of evaluate.clip. Of its
  # features so many principal components are kept; 0 keeps all.
  discover.image = image = ml_collections.ConfigDict()
  image.network = 'measure'
  image.width = 64
  # Of the views: smallest share of the area of a crop; how far brightness,
  # contrast and saturation change.
  image.least_crop = 0.5
  image.jitter = 0.2
  # The encoder of texts: 'words' places texts by the words that they share
  # (latent semantic analysis), 'clip' is the tower of evaluate.clip, 'vectors'
  # a file of a vector for each text, as of text.vectors (docs/own_images.md).
  discover.text = text = ml_collections.ConfigDict()
  text.network = 'words'
  text.width = 96
  text.vectors = ''
  # Probability that a view of a text leaves out a word. Given vectors have no
  # views but those of a pair's several texts.
  text.word_dropping = 0.3
  # Views of each pair that are encoded; a training draws two at a time.
  discover.views = 8

  # The network on the frozen features: the width that both modalities share,
  # residual blocks (they stand for the last block of an encoder, which is
  # trained as published), width of their hidden layer and of the projector's,
  # width of what is contrasted (published: 2048 and 256), and whether both
  # modalities have one head.
  discover.width = 128
  discover.depth = 1
  discover.hidden_width = 256
  discover.projection_width = 64
  discover.shared_head = True
  # Dropout of features: makes views differ that are equal otherwise.
  discover.dropout_rate = 0.1

  # Published for GCD and SimGCD, but for the number of epochs, which was 200.
  discover.num_epochs = 100
  discover.batch_size = 128
  discover.learning_rate = 0.1
  discover.weight_decay = 5e-5
  discover.supervised_weight = 0.35
  discover.contrast_temperature = 1.0
  discover.supervised_temperature = 0.07
  discover.student_temperature = 0.1
  # The teacher's, from the first to the second over the warm-up.
  discover.teacher_temperatures = (0.07, 0.04)
  discover.warmup_epochs = 15
  # Weight of the mean entropy (published: 1, 2 for CUB, 4 for CIFAR-100).
  discover.entropy_weight = 2.0

  # What joins the modalities. MM-GCD's abstract has both terms; their weights,
  # temperatures and directions are not known, and these are ours. a: contrast
  # between the modalities, with the same 'items' (those of one text) as
  # positives, or with all of the same 'labels', too.
  discover.cross_weight = 0.5
  discover.cross_temperature = 0.1
  discover.cross_positives = 'items'
  # b: distillation between their predictions; who teaches: 'both' each other,
  # 'image' or 'text' the other, or the 'fused' prediction both.
  discover.mutual_weight = 0.5
  discover.mutual_teacher = 'fused'
  # What is averaged for the prediction: 'probabilities' or 'logits'.
  discover.fusion = 'probabilities'
  # Starts of each k-means (published: 100).
  discover.kmeans_inits = 10
  if preset == 'tiny':
    _make_tiny(config)
  return config


def _make_tiny(config: ml_collections.ConfigDict) -> None:
  """Makes everything small and short."""
  config.data.image_size = 16
  config.judges.measure.update(
    widths=(4, 8, 8), feature_width=8, num_steps=4, batch_size=16
  )
  discover = config.discover
  discover.update(num_splits=1, num_seeds=1, views=2, kmeans_inits=2)
  discover.update(width=16, hidden_width=16, projection_width=8)
  discover.update(num_epochs=4, warmup_epochs=2, batch_size=16)
  discover.image.width = discover.text.width = 8
