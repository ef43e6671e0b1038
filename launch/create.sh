#!/usr/bin/env bash
# Asks for the TPU slice; does nothing if it was asked for already.
#
#   launch/create.sh [--spot] [FLAG OF gcloud ... queued-resources create]...
#
# It comes back at once; the slice may take hours (launch/status.sh).
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_slice
need ACCELERATOR_TYPE v4-32
need RUNTIME_VERSION tpu-ubuntu2204-base
for flag in "$@"; do
  [[ $flag == --* ]] || die "$flag: only flags, as --spot or --labels=a=b"
done

state=$(slice_state)
case $state in
  '') ;;
  FAILED | SUSPENDED | PREEMPTED)
    die "$NAME is there and $state; launch/delete.sh, then this again"
    ;;
  *)
    say "$NAME is there already: $state"
    exit 0
    ;;
esac
tpus queued-resources create "$NAME" "--node-id=$NAME" \
  "--accelerator-type=$ACCELERATOR_TYPE" \
  "--runtime-version=$RUNTIME_VERSION" "$@"
