#!/usr/bin/env bash
# Puts the code and its packages, at pinned versions, on every worker, and
# mounts the shared storage there. Again: the code as it is now.
#
#   launch/setup.sh
#
# The code is a copy of this working tree, changes and new files included, or
# REPOSITORY at REVISION. Waits for a slice that is still in the queue.
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_workers
[[ -z $REPOSITORY ]] || need REVISION v0.1.0
[[ -z $BUCKET || -z $NFS ]] || die 'BUCKET and NFS are both set; one of them'

while true; do
  state=$(slice_state)
  case $state in
    ACTIVE) break ;;
    '')
      if dry; then break; fi
      die 'there is no slice; launch/create.sh asks for one'
      ;;
    FAILED | SUSPENDED | PREEMPTED)
      die "$NAME is $state; launch/delete.sh, then launch/create.sh"
      ;;
  esac
  say "$NAME is $state; looking again in $POLL s"
  sleep "$POLL"
done

# What is copied; always the same place, so that a dry run can name it.
parcel=${XDG_CACHE_HOME:-$HOME/.cache}/adanat_jax/$REMOTE
run mkdir -p "$parcel"
run cp "$LAUNCH/worker.sh" "$parcel/"
# By this the processes of a run know each other. A file of ours alone and not a
# word of a command, which everybody on a machine may read.
dry || (
  umask 077
  rm -f "$parcel/secret.new"
  od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n' >"$parcel/secret.new"
)
if [[ -z $REPOSITORY ]]; then
  root=$(dirname "$LAUNCH")
  # Tracked and new files, but for those that were deleted.
  dry || git -C "$root" ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
      [[ ! -e $root/$file ]] || printf '%s\0' "$file"
    done >"$parcel/files"
  COPYFILE_DISABLE=1 run tar -czf "$parcel/source.tar.gz" -C "$root" \
    --null -T "$parcel/files"
fi
copy_to_workers "$parcel"
on_workers all "$(quote env "EXTRA=$EXTRA" "PYTHON=$PYTHON" \
  "REPOSITORY=$REPOSITORY" "REVISION=$REVISION" \
  "BUCKET=$BUCKET" "NFS=$NFS" "MOUNT=$MOUNT") $(worker setup)"
