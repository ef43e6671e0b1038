#!/usr/bin/env bash
# Prints the end of a worker's log.
#
#   launch/logs.sh [--worker=NUMBER|all] [--lines=NUMBER] [--follow]
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_workers
worker=0
flags=(--lines=50)
for flag in "$@"; do
  case $flag in
    --worker=all | --worker=[0-9]*) worker=${flag#*=} ;;
    --lines=[0-9]* | --follow) flags+=("$flag") ;;
    *) die "$flag: not a flag of this script; see launch/logs.sh --help" ;;
  esac
done
on_workers "$worker" "$(worker logs "${flags[@]}")"
