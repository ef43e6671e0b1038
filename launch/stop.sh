#!/usr/bin/env bash
# Asks the run on every worker to save and to end, and waits until it has.
# launch/run.sh with the same flags goes on from there.
#
#   launch/stop.sh [--kill]
#
# --kill ends it at once: what was done since the last checkpoint is lost.
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_workers
[[ $# == 0 || $* == --kill ]] || die "$*: only --kill"
on_workers all "$(worker stop "$@")"
