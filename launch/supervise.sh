#!/usr/bin/env bash
# Keeps a run going until it has finished: asks for the slice, sets it up and
# starts the run; does so again when the slice was preempted or has failed, and
# starts the run again when it was interrupted or has crashed.
#
#   launch/supervise.sh [FLAG OF create.sh]... -- FLAG OF run.sh...
#
# Ends with 0 when the run has finished, with 143 when launch/stop.sh ended it,
# with 2 when its flags, its config or its numbers are wrong (exit code 2) or
# after MAX_FAILURES failures; that it could not write (74) is one.
# Ctrl-C ends this script and leaves the run going; the same command takes over.
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_workers
create_flags=()
while [[ $# -gt 0 && $1 != -- ]]; do
  create_flags+=("$1")
  shift
done
[[ $# -gt 1 ]] || die 'no run; for example: launch/supervise.sh --spot --' \
  "--config=configs/digits.py:pod --workdir=$MOUNT/digits"
shift

# It goes on for days: its lines say when.
say() { printf '%s supervise.sh: %s\n' "$(date -u +%FT%TZ)" "$*" >&2; }

failures=0 # Since the last preemption.
halves=0   # Looks in a row at which only a part of the workers was running.

failed() {
  failures=$((failures + 1))
  say "failure $failures of $MAX_FAILURES: $*"
  [[ $failures -lt $MAX_FAILURES ]] || die 'giving up; see launch/logs.sh'
}

# Looks after the run on a slice that is there.
attend() {
  local lines states
  if ! lines=$(worker_states); then
    say 'not every worker answers'
    return
  fi
  states=" $(sed -nE 's/^[^ ]+: ([a-z]+).*/\1/p' <<<"$lines" |
    sort -u | tr '\n' ' ')"
  if [[ $states == ' ' ]] && ! dry; then
    say 'no worker answers'
    return
  fi
  [[ $states == *' running '* ]] || halves=0
  case $states in
    ' running ')
      halves=0
      return
      ;;
    ' finished ')
      say 'finished; launch/delete.sh deletes the slice'
      exit 0
      ;;
    ' refused ')
      die 'the flags, the config or the numbers are wrong; see launch/logs.sh'
      ;;
    *' stopped '*)
      say 'launch/stop.sh ended the run'
      exit 143
      ;;
    *' running '*)
      # The others end soon too, or wait for those that ended.
      halves=$((halves + 1))
      [[ $halves -gt $PATIENCE ]] || return 0
      halves=0
      on_workers all "$(worker kill) || true" || return 0
      ;;
  esac
  case $states in
    *' failed '* | *' refused '*) failed 'the run crashed' ;;
  esac
  say "starting; workers were:${states% }"
  if [[ $states == *' absent '* ]] || dry; then
    if ! "$LAUNCH/setup.sh"; then
      failed 'setup.sh'
      return
    fi
  fi
  "$LAUNCH/run.sh" "$@" || failed 'run.sh'
}

# One look. Nothing here ends the script but `die` and `exit`.
look() {
  local state
  if ! state=$(slice_state); then
    say 'the state of the slice cannot be asked'
    return
  fi
  case $state in
    ACTIVE) attend "$@" ;;
    '')
      "$LAUNCH/create.sh" ${create_flags[@]+"${create_flags[@]}"} ||
        failed 'create.sh'
      ;;
    FAILED | SUSPENDED | PREEMPTED)
      say "$NAME is $state; asking for another"
      if [[ $state == FAILED ]]; then failed 'the slice'; else failures=0; fi
      "$LAUNCH/delete.sh" --yes || failed 'delete.sh'
      ;;
    *) say "$NAME is $state" ;;
  esac
}

if dry; then
  look "$@" # No slice is there: create.
  attend "$@"
  exit 0
fi
while true; do
  look "$@" || true
  sleep "$POLL"
done
