#!/usr/bin/env bash
# Deletes the slice, its queued resource and the disks of its machines, after
# asking. Does nothing if it is gone.
#
#   launch/delete.sh [--yes]
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_slice
[[ $# == 0 || $* == --yes ]] || die "$*: only --yes"
state=$(slice_state)
if [[ -z $state ]] && ! dry; then
  say "there is no $NAME in $ZONE of $PROJECT"
  exit 0
fi
confirm "Delete queued resource $NAME ($state) and TPU slice $NAME with its \
disks, in $ZONE of $PROJECT?" "${1:-}"
say "deleting queued resource and TPU slice $NAME in $ZONE of $PROJECT"
tpus queued-resources delete "$NAME" --force --quiet
