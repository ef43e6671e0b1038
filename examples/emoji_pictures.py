"""Makes a folder of emoji for configs/emoji.py from packages of npm.

  npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
  python examples/emoji_pictures.py *.tgz

Pictures are copied as they are; docs/emoji.md says what comes of them.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import re
import sys
import tarfile

# As README.md of the packages says. It has no open licence for other vendors.
LICENCES = {
  'google': (
    'Noto Emoji, (c) Google, https://github.com/googlefonts/noto-emoji,'
    ' Apache License 2.0'
  ),
  'twitter': (
    'Twemoji, (c) Twitter, Inc. and other contributors,'
    ' https://github.com/jdecked/twemoji, CC BY 4.0,'
    ' https://creativecommons.org/licenses/by/4.0/'
  ),
}
HELD_OUT = 10  # One of so many families of emoji is kept for validation.
# A man's, a woman's and anybody's drawing hardly differ, nor does one that
# faces right: they are a family. FE0F asks for colour, 200D joins characters.
_ADULTS = {'1F468': '1F9D1', '1F469': '1F9D1'}
_IGNORED = {'FE0F', '200D', '2640', '2642', '27A1'}


def family(unified):
  """What an emoji, such as '1F3C3-200D-2640-FE0F', shares with its variants."""
  parts = [p for p in unified.split('-') if p not in _IGNORED]
  return '-'.join(_ADULTS.get(p, p) for p in parts) or unified


def is_held_out(unified):
  """Whether an emoji is for validation; the same for all vendors."""
  digest = hashlib.sha256(family(unified).encode()).digest()
  return int.from_bytes(digest[:4], 'big') % HELD_OUT == 0


def captions(emoji):
  """Its name and, if that has other words, its first short name."""
  name = emoji['name'].lower()
  short = re.sub('[_-]+', ' ', emoji['short_name']).lower()
  is_code = emoji['category'] == 'Flags' and short.startswith('flag ')
  return [name] if is_code or short == name else [name, short]


def main(packages, output='emoji'):
  """Writes output/{train,validation}/<category>/<emoji>-<vendor>.png."""
  output, counts, vendors = pathlib.Path(output), collections.Counter(), {}
  tables = collections.defaultdict(list)
  if output.exists():
    sys.exit(f'{output} is there already: remove it or give another --output')
  for package in packages:  # All of them before anything is written.
    with tarfile.open(package) as tar:
      about = json.load(tar.extractfile('package/package.json'))
    vendor = about['name'].split('-')[-1]
    if vendor not in LICENCES:
      sys.exit(f'{package}: pictures of {vendor!r} have no open licence here')
    if vendor in vendors:
      sys.exit(f'{package}: {vendors[vendor]} has pictures of {vendor!r}, too')
    vendors[vendor] = package
  for vendor, package in vendors.items():
    with tarfile.open(package) as tar:
      members = {m.name: m for m in tar.getmembers() if m.isfile()}
      read = lambda name, tar=tar, members=members: tar.extractfile(
        members[name]
      ).read()
      for emoji in json.loads(read('package/emoji.json')):
        source = f'package/img/{vendor}/64/{emoji["image"]}'
        category = emoji['category']
        if category == 'Component' or source not in members:
          continue
        split = 'validation' if is_held_out(emoji['unified']) else 'train'
        folder = re.sub('[^a-z]+', '-', category.lower())
        name = f'{folder}/{pathlib.Path(source).stem}-{vendor}.png'
        target = output / split / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read(source))
        row = {'file_name': name, 'text': captions(emoji)}
        # A finer class, which docs/discovery.md looks for.
        tables[split].append({**row, 'subcategory': emoji['subcategory']})
        counts[split, folder] += 1
  for split, rows in tables.items():
    lines = ''.join(f'{json.dumps(row)}\n' for row in rows)
    (output / split / 'metadata.jsonl').write_text(lines)
  (output / 'ATTRIBUTION.md').write_text(
    'Pictures of emoji, unchanged, from the packages emoji-datasource-*:\n\n'
    + ''.join(f'* `*-{v}.png`: {LICENCES[v]}\n' for v in sorted(vendors))
  )
  return dict(sorted(counts.items()))


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('packages', nargs='+')
  parser.add_argument('--output', default='emoji')
  for (split, folder), count in main(**vars(parser.parse_args())).items():
    print(f'{split:10} {folder:20} {count:5}')
