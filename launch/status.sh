#!/usr/bin/env bash
# Prints the state of the slice and of the run on each worker.
#
#   launch/status.sh
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_workers
state=$(slice_state)
if [[ -z $HOSTS ]]; then
  dry || echo "slice $NAME: ${state:-absent}"
fi
if [[ $state == ACTIVE ]] || dry; then
  worker_states
fi
