#!/usr/bin/env bash
# Starts `python -m adanat_jax.main FLAG...` on every worker, where it goes on
# without this machine. Does nothing on workers where it is running already.
#
#   launch/run.sh --config=FILE --workdir=DIR [FLAG OF adanat_jax.main]...
#
# DIR: an absolute path that all workers share, as /mnt/shared/digits.
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_workers
[[ $# -gt 0 ]] || die 'no flags; for example: launch/run.sh' \
  "--config=configs/digits.py:pod --workdir=$MOUNT/digits"
on_workers all "$(worker run "$@")" ||
  die 'not started on every worker; one that is new needs launch/setup.sh'
