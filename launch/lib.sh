# shellcheck shell=bash
# What the scripts here share; they source it. Bash 3.2 (macOS) is enough.
set -euo pipefail

LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# On a worker, in the home directory; setup.sh makes it.
REMOTE=adanat_jax_launch
# shellcheck source=launch/env.sh
. "$LAUNCH/env.sh"
# Dry runs print here, so that they do from within $(...) too.
exec 3>&1

# --help prints the comment that a script begins with.
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
  exit 0
fi

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

die() {
  say "$*"
  exit 2
}

# Programs would take such a value for a flag of theirs.
for variable in BUCKET NFS REPOSITORY REVISION MOUNT; do
  [[ ${!variable} != -* ]] || die "$variable=${!variable}: begins with a dash"
done
for host in $HOSTS; do
  [[ $host != -* ]] || die "HOSTS=$HOSTS: $host begins with a dash"
done

# need VARIABLE EXAMPLE
need() {
  [[ -n ${!1} ]] ||
    die "$1 is not set; for example: export $1=$2 (or write launch/env.sh)"
}

need_slice() {
  [[ -z $HOSTS ]] ||
    die "HOSTS=$HOSTS is set; those machines are not made or deleted here"
  need PROJECT my-project
  need ZONE us-central2-b
  need NAME adanat
  [[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    die "NAME=$NAME: small letters, digits and dashes, a letter first"
}

need_workers() { [[ -n $HOSTS ]] || need_slice; }

dry() { [[ ${DRY_RUN:-0} != 0 ]]; }

# The words as one line that a POSIX shell reads back as the same words.
quote() {
  local word line='' apostrophe="'" escaped="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*)
        word=$apostrophe${word//$apostrophe/$escaped}$apostrophe
        ;;
    esac
    line+=" $word"
  done
  printf '%s' "${line# }"
}

# Runs a command, or prints it if DRY_RUN is set.
run() {
  if dry; then
    printf '%s\n' "$(quote "$@")" >&3
  else
    "$@" 3>&- # A run left in the background would hold it open.
  fi
}

# confirm QUESTION YES: asks, unless YES is --yes.
confirm() {
  local answer
  if dry || [[ $2 == --yes ]]; then return; fi
  [[ -t 0 ]] || die "$1 There is no terminal to ask at; --yes says yes"
  read -r -p "$1 [y/N] " answer
  [[ $answer == [yY]* ]] || die 'nothing was changed'
}

tpus() { run gcloud compute tpus "$@" "--project=$PROJECT" "--zone=$ZONE"; }

# listed KIND FIELD: the field of our one, nothing if there is none.
listed() {
  local rows
  rows=$(tpus "$1" list "--format=value(name.basename(),$2)") || return
  awk -v name="$NAME" '$1 == name { print $2 }' <<<"$rows"
}

# What is to be waited for, or to be done: nothing if no slice was asked for,
# the queued resource's state until it is ACTIVE, then the machines' while that
# is not READY. Machines that are gone are PREEMPTED, by whatever.
slice_state() {
  local state node
  if [[ -n $HOSTS ]]; then
    echo ACTIVE
    return
  fi
  state=$(listed queued-resources state.state) || return
  if [[ $state == ACTIVE ]]; then
    node=$(listed tpu-vm state) || return
    case $node in
      READY) ;;
      '' | TERMINATED) state=PREEMPTED ;;
      *) state=$node ;;
    esac
  fi
  printf '%s' "$state"
}

# each_host WORKER FUNCTION ARGUMENT: on one host by its number, or on all at
# once; fails if one of them does.
each_host() {
  local host number=0 job status=0 jobs=''
  for host in $HOSTS; do
    if [[ $1 == all || $1 == "$number" ]]; then
      if dry; then
        "$2" "$host" "$3"
      else
        "$2" "$host" "$3" &
        jobs+=" $!"
      fi
    fi
    number=$((number + 1))
  done
  for job in $jobs; do
    wait "$job" || status=$?
  done
  return "$status"
}

# Never asks; new hosts are trusted, known ones that changed are not.
SSH_OPTIONS=(-o BatchMode=yes -o StrictHostKeyChecking=accept-new)

copy_to_host() {
  case $1 in
    local) run cp -R "$2" "$HOME/" ;;
    *) run scp "${SSH_OPTIONS[@]}" -q -r "$2" "$1:" </dev/null ;;
  esac
}

run_on_host() {
  case $1 in
    local) run bash -c "cd && $2" </dev/null ;;
    *) run ssh "${SSH_OPTIONS[@]}" "$1" "$2" </dev/null ;;
  esac
}

# copy_to_workers DIRECTORY: into the home directory of each.
copy_to_workers() {
  if [[ -n $HOSTS ]]; then
    each_host all copy_to_host "$1"
  else
    tpus tpu-vm scp "$1" "$NAME:" --quiet --recurse --worker=all </dev/null
  fi
}

# on_workers WORKER COMMAND
on_workers() {
  if [[ -n $HOSTS ]]; then
    each_host "$1" run_on_host "$2"
  else
    tpus tpu-vm ssh "$NAME" --quiet "--worker=$1" "--command=$2" </dev/null
  fi
}

# The command line of worker.sh on a worker.
worker() { quote bash "$REMOTE/worker.sh" "$@"; }

# One line for each worker: 'NAME: STATE ...', see worker.sh.
worker_states() {
  on_workers all \
    "$(worker status) 2>/dev/null || echo \"\$(hostname): absent (not set up)\""
}
