"""Raw data sets in their real formats, tiny, of real pictures.

Each function writes one data set below a directory and returns where it is:

  image_folder   a folder for each class, with the odd files real sets have
  imagenet_tars  ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and devkit
  coco           train2014, val2014 and captions_*.json
  cc3m_tsv       `<key>.jpg <tab> number <tab> caption <tab> base64`, no header
  cc3m_prompts   `caption <tab> url`, with a header
  webdataset     00000.tar, ... of <key>.jpg, <key>.txt, <key>.json
  tfds_images    ArrayRecord as tensorflow_datasets prepares it
  pairs          an image folder with metadata.csv, a text for each image
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import pathlib
import tarfile
from typing import Any

import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from adanat_jax.data.sources import registry
from adanat_jax.data.sources.raw_source import RawExample, SourceSettings
from support import raw_pictures

# Four of ImageNet's, in the order of its synsets. The numbers of its devkit are
# in another order, as theirs are.
SYNSETS = ('n01440764', 'n01443537', 'n02084071', 'n03000684')
_DEVKIT_IDS = (3, 1, 4, 2)

_COLOURS = ('red', 'green', 'grey', 'bright', 'dark')
_THINGS = ('temple', 'flower', 'roof', 'leaf', 'sky', 'petal')


@dataclasses.dataclass(frozen=True)
class Folder:
  """An image folder.

  Attributes:
    path: its root.
    labels: the label of each image that can be read, by key.
    corrupt: the keys of those that cannot.
  """

  path: pathlib.Path
  labels: dict[str, int]
  corrupt: tuple[str, ...]


def image_folder(
  root: pathlib.Path,
  num_classes: int = 3,
  per_class: int = 4,
  odd: bool = False,
  corrupt: bool = False,
) -> Folder:
  """Writes a folder of class folders.

  Args:
    root: where.
    num_classes: how many; 0 for images in the root itself.
    per_class: how many plain JPEG files in each.
    odd: put `odd_files` into the first class too.
    corrupt: put `corrupt_files` into the last class too.
  """
  folders = [f'class_{label}' for label in range(num_classes)] or ['.']
  labels, broken = {}, []
  for label, folder in enumerate(folders):
    contents = {
      f'{label}_{i:05d}.JPEG': raw_pictures.jpeg(100 * label + i)
      for i in range(per_class)
    }
    if odd and label == 0:
      contents |= raw_pictures.odd_files()
    damaged = (
      raw_pictures.corrupt_files() if corrupt and folder == folders[-1] else {}
    )
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, data in {**contents, **damaged}.items():
      path = root / folder / name
      path.write_bytes(data)
      key = path.relative_to(root).as_posix()
      if name in damaged:
        broken.append(key)
      else:
        labels[key] = label
  # What no reader may take for an image.
  (root / folders[0] / 'Thumbs.db').write_bytes(b'no image')
  (root / folders[0] / '._hidden.jpg').write_bytes(b'no image')
  return Folder(root, labels, tuple(broken))


def pairs(root: pathlib.Path) -> Folder:
  """Writes an image folder, and a table of a text for each image."""
  folder = image_folder(root)
  rows = [f'{key},an image of class {x}' for key, x in folder.labels.items()]
  (root / 'metadata.csv').write_text('\n'.join(['file_name,text', *rows]))
  return folder


def add_to_tar(tar: tarfile.TarFile, name: str, data: bytes) -> None:
  """Adds one file to an open tar."""
  member = tarfile.TarInfo(name)
  member.size = len(data)
  tar.addfile(member, io.BytesIO(data))


def tar_of(contents: dict[str, bytes]) -> bytes:
  """A tar of files, by name."""
  stream = io.BytesIO()
  with tarfile.open(fileobj=stream, mode='w') as tar:
    for name, data in contents.items():
      add_to_tar(tar, name, data)
  return stream.getvalue()


@dataclasses.dataclass(frozen=True)
class ImageNet:
  """ImageNet's official files.

  Attributes:
    train: ILSVRC2012_img_train.tar.
    validation: ILSVRC2012_img_val.tar, with the devkit beside it.
    devkit: ILSVRC2012_devkit_t12.tar.gz.
    train_labels: labels by the names in `train`.
    validation_labels: labels by the names in `validation`.
  """

  train: pathlib.Path
  validation: pathlib.Path
  devkit: pathlib.Path
  train_labels: dict[str, int]
  validation_labels: dict[str, int]


def imagenet_tars(
  root: pathlib.Path, num_classes: int = 3, per_class: int = 4, held: int = 6
) -> ImageNet:
  """Writes ImageNet's tar files, `held` images for validation."""
  root.mkdir(parents=True, exist_ok=True)
  synsets = SYNSETS[:num_classes]
  train, validation = (
    root / f'ILSVRC2012_img_{split}.tar' for split in ('train', 'val')
  )
  train_labels = {}
  with tarfile.open(train, 'w') as tar:
    for label, synset in enumerate(synsets):
      inner = {
        f'{synset}_{i}.JPEG': raw_pictures.jpeg(100 * label + i)
        for i in range(per_class)
      }
      add_to_tar(tar, f'{synset}.tar', tar_of(inner))
      train_labels |= {f'{synset}/{name}': label for name in inner}
  labels = [(i * 2 + i // num_classes) % num_classes for i in range(held)]
  names = [f'ILSVRC2012_val_{i + 1:08d}.JPEG' for i in range(held)]
  contents = {
    name: raw_pictures.jpeg(100 * label + 50 + i)
    for i, (name, label) in enumerate(zip(names, labels, strict=True))
  }
  validation.write_bytes(tar_of(contents))
  devkit = root / 'ILSVRC2012_devkit_t12.tar.gz'
  _write_devkit(devkit, synsets, labels)
  return ImageNet(
    train,
    validation,
    devkit,
    train_labels,
    dict(zip(names, labels, strict=True)),
  )


def _write_devkit(
  path: pathlib.Path, synsets: tuple[str, ...], labels: list[int]
) -> None:
  ranks = np.argsort(np.argsort(_DEVKIT_IDS[: len(synsets)])) + 1
  rows = [(int(n), s, 0) for n, s in zip(ranks, synsets, strict=True)]
  # Inner nodes of the hierarchy follow the leaves.
  rows = [*sorted(rows), (len(rows) + 1, 'n00001740', len(rows))]
  fields = np.zeros(
    (len(rows), 1),
    [
      (name, object)
      for name in ('ILSVRC2012_ID', 'WNID', 'words', 'gloss', 'num_children')
    ],
  )
  for row, (number, synset, children) in enumerate(rows):
    fields[row, 0] = (number, synset, 'word', 'gloss', children)
  stream = io.BytesIO()
  scipy.io.savemat(stream, {'synsets': fields})
  truth = ''.join(f'{ranks[label]}\n' for label in labels)
  data = 'ILSVRC2012_devkit_t12/data'
  with tarfile.open(path, 'w:gz') as tar:
    add_to_tar(tar, 'ILSVRC2012_devkit_t12/readme.txt', b'a devkit\n')
    add_to_tar(tar, f'{data}/meta.mat', stream.getvalue())
    add_to_tar(
      tar, f'{data}/ILSVRC2012_validation_ground_truth.txt', truth.encode()
    )


def captions(number: int, count: int) -> list[str]:
  """Sentences, with such letters as real ones have."""
  return [
    f'A {_COLOURS[(number + k) % 5]} {_THINGS[(number * 3 + k) % 6]} near a'
    f' café, view {number}.{k}'
    for k in range(count)
  ]


@dataclasses.dataclass(frozen=True)
class Captioned:
  """Images with captions.

  Attributes:
    path: the images.
    annotations: the JSON file of their captions, where it is one of its own.
    captions: each image's, by key.
  """

  path: pathlib.Path
  annotations: pathlib.Path
  captions: dict[str, tuple[str, ...]]


def coco(root: pathlib.Path, split: str = 'train', count: int = 6) -> Captioned:
  """Writes a split of COCO 2014, with five or six captions an image."""
  folder = root / f'{split}2014'
  folder.mkdir(parents=True, exist_ok=True)
  start = 0 if split == 'train' else 500
  numbers = [start + 17 * i + 9 for i in range(count)]
  names = {n: f'COCO_{split}2014_{n:012d}.jpg' for n in numbers}
  texts = {n: captions(n, 5 + n % 2) for n in numbers}
  for number, name in names.items():
    (folder / name).write_bytes(raw_pictures.jpeg(number))
  listing = {
    'info': {'description': 'COCO 2014 Dataset', 'year': 2014},
    'images': [
      {'license': 5, 'file_name': name, 'id': n} for n, name in names.items()
    ],
    'licenses': [],
    # Not in the order of the images, as theirs are not.
    'annotations': [
      # Some of theirs end in a line feed.
      {'image_id': n, 'id': 1000 * k + n, 'caption': texts[n][k] + '\n' * k}
      for k in range(6)
      for n in reversed(numbers)
      if k < len(texts[n])
    ],
  }
  annotations = root / 'annotations' / f'captions_{split}2014.json'
  annotations.parent.mkdir(exist_ok=True)
  annotations.write_text(json.dumps(listing))
  return Captioned(
    folder, annotations, {names[n]: tuple(texts[n]) for n in numbers}
  )


def cc3m_tsv(root: pathlib.Path, count: int = 6) -> Captioned:
  """Writes CC3M's training table as the authors' script does.

  A line each: `<key>.jpg`, a number, the caption, the JPEG file in base64; no
  header.
  """
  root.mkdir(parents=True, exist_ok=True)
  path = root / 'cc3m_train.tsv'
  texts = {}
  with path.open('w', encoding='utf-8') as table:
    for i in range(count):
      key = f'{i // 4:05d}{i % 4:04d}.jpg'
      (texts[key],) = captions(i, 1)
      data = base64.b64encode(raw_pictures.jpeg(300 + i)).decode()
      table.write(f'{key}\t{i}\t{texts[key]}\t{data}\n')
  return Captioned(path, path, {key: (text,) for key, text in texts.items()})


def cc3m_prompts(
  root: pathlib.Path, count: int = 5, header: bool = True
) -> Captioned:
  """Writes CC3M's validation table: captions and addresses, no images."""
  root.mkdir(parents=True, exist_ok=True)
  path = root / 'cc3m_val.tsv'
  texts = [f'{text} "quoted"' for i in range(count) for text in captions(i, 1)]
  lines = ['caption\turl'] if header else []
  lines += [f'{t}\thttp://example.com/{i}.jpg' for i, t in enumerate(texts)]
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  return Captioned(path, path, {str(i): (t,) for i, t in enumerate(texts)})


def webdataset(
  root: pathlib.Path, shards: int = 2, per_shard: int = 4, text: bool = True
) -> Captioned:
  """Writes WebDataset shards as img2dataset does.

  Args:
    root: where; the shards are 00000.tar and so on.
    shards: how many.
    per_shard: images in each.
    text: write `<key>.txt` too; img2dataset has the caption in the JSON file
      in any case.
  """
  root.mkdir(parents=True, exist_ok=True)
  texts = {}
  for shard in range(shards):
    contents = {}
    for i in range(per_shard):
      key = f'{shard:05d}{i:04d}'
      (texts[key],) = captions(shard * per_shard + i, 1)
      note = {
        'caption': texts[key],
        'url': f'http://example.com/{key}.jpg',
        'key': key,
        'status': 'success',
        'error_message': None,
        'width': 256,
        'height': 256,
      }
      contents[f'{key}.jpg'] = raw_pictures.jpeg(400 + 10 * shard + i)
      if text:
        contents[f'{key}.txt'] = texts[key].encode()
      contents[f'{key}.json'] = json.dumps(note, indent=4).encode()
    (root / f'{shard:05d}.tar').write_bytes(tar_of(contents))
    # It leaves these beside them.
    (root / f'{shard:05d}_stats.json').write_text('{"count": 4}')
  return Captioned(root, root, {key: (text,) for key, text in texts.items()})


def tfds_images(root: pathlib.Path, name: str = 'imagenet2012') -> Captioned:
  """Prepares a data set of tensorflow_datasets as ArrayRecord.

  Args:
    root: its data_dir.
    name: 'imagenet2012' with the splits train and validation, or
      'coco_captions' with train, val, test and restval. The features are the
      real ones, with as many classes as `SYNSETS`.

  Returns:
    The data_dir, and the captions by file name where there are some.
  """
  features = tfds.features
  texts: dict[str, tuple[str, ...]] = {}
  if name == 'imagenet2012':
    version = '5.1.0'
    sizes = {'train': 6, 'validation': 4}
    structure = {
      'image': features.Image(encoding_format='jpeg'),
      'label': features.ClassLabel(names=SYNSETS),
      'file_name': features.Text(),
    }
  else:
    version = '1.1.0'
    sizes = {'train': 6, 'val': 2, 'test': 2, 'restval': 3}
    structure = {
      'image': features.Image(encoding_format='jpeg'),
      'image/filename': features.Text(),
      'image/id': np.int64,
      'captions': features.Sequence({'text': np.str_, 'id': np.int64}),
      'objects': features.Sequence({'area': np.int64, 'is_crowd': np.bool_}),
    }

  configs = []
  if name == 'coco_captions':
    configs = [tfds.core.BuilderConfig(name='2014', version=version)]

  def rows(split):
    start = 600 + 20 * list(sizes).index(split)
    for i in range(start, start + sizes[split]):
      row = {'image': io.BytesIO(raw_pictures.jpeg(i))}
      if name == 'imagenet2012':
        label = i % len(SYNSETS)
        row |= {'file_name': f'{SYNSETS[label]}_{i}.JPEG', 'label': label}
      else:
        file_name = f'COCO_{split}_{i:012d}.jpg'
        texts[file_name] = tuple(captions(i, 5))
        row |= {
          'image/filename': file_name,
          'image/id': i,
          'captions': [
            {'id': k, 'text': text} for k, text in enumerate(texts[file_name])
          ],
          'objects': [{'area': 9, 'is_crowd': False}],
        }
      yield i, row

  with tfds.core.registered.skip_registration():

    class Prepared(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version(version)
      BUILDER_CONFIGS = configs

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self, features=features.FeaturesDict(structure)
        )

      def _split_generators(self, dl_manager):
        return {split: rows(split) for split in sizes}

      def _generate_examples(self):
        raise NotImplementedError

  Prepared.name = name
  builder = Prepared(data_dir=root, file_format='array_record')
  tfds.disable_progress_bar()
  builder.download_and_prepare()
  return Captioned(root, root, texts)


def make_settings(
  source: str, path: pathlib.Path | str, **fields: object
) -> SourceSettings:
  """The settings that read a data set, paths as text."""
  as_text = lambda x: str(x) if isinstance(x, pathlib.Path) else x
  texts: dict[str, Any] = {name: as_text(x) for name, x in fields.items()}
  return SourceSettings(source, str(path), **texts)


def make_coco_settings(train: Captioned, val: Captioned) -> SourceSettings:
  """The settings that read two splits of COCO."""
  return make_settings(
    'coco',
    train.path,
    validation_path=val.path,
    annotations=train.annotations,
    validation_annotations=val.annotations,
  )


def read_all(
  settings: SourceSettings, split: str = 'train'
) -> list[RawExample]:
  """All examples of a split, in the order of the source."""
  source = registry.open_source(settings, split)
  return [source[index] for index in range(len(source))]
