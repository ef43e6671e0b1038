#!/usr/bin/env bash
# The half of these scripts that runs on a worker. setup.sh copies it there and
# the other scripts call it; it needs Linux, bash, curl and flock.
#
#   worker.sh setup | run FLAG... | status | logs FLAG... | stop [--kill] | kill
#
# Everything is kept beside it: source/, venv/, log, secret, and of the last run
# pid, exit (its exit code) and stopped (somebody asked for that). While it runs it
# holds a lock on the file lock, which no crash can leave behind.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
UV_VERSION=0.13.8

say() { printf '%s: %s\n' "$(hostname)" "$*"; }

die() {
  say "$*" >&2
  exit 1
}

running() { ! flock --shared --nonblock "$ROOT/lock" true; }

install() {
  # Freshly started machines install updates of their own for a while.
  sudo env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=300 install --yes --quiet "$@"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  local site=https://packages.cloud.google.com/apt codename
  # shellcheck disable=SC1091  # The system's.
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  curl -fsSL "$site/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $site gcsfuse-$codename main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update --quiet
  install gcsfuse
}

# Mounts BUCKET or NFS at MOUNT, unless it is there already.
mount_shared() {
  local mounted probe
  [[ -n $BUCKET$NFS ]] || return 0
  mounted=$(findmnt --noheadings --output SOURCE --mountpoint "$MOUNT" || true)
  if [[ -n $mounted ]]; then
    [[ $mounted == "$BUCKET$NFS" ]] ||
      die "$MOUNT: $mounted is mounted there, not $BUCKET$NFS"
    return 0
  fi
  sudo mkdir -p "$MOUNT"
  if [[ -n $BUCKET ]]; then
    command -v gcsfuse >/dev/null || install_gcsfuse
    sudo chown "$(id -u)" "$MOUNT"
    # What one worker writes the others have to see at once: no cached names.
    gcsfuse --implicit-dirs --rename-dir-limit=100000 \
      --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
      "$BUCKET" "$MOUNT"
  else
    command -v mount.nfs >/dev/null || install nfs-common
    sudo mount -t nfs "$NFS" "$MOUNT"
    [[ -w $MOUNT ]] || sudo chown "$(id -u)" "$MOUNT"
  fi
  # Checkpoints become visible by renaming their directory.
  probe=$MOUNT/.probe-$(hostname)
  rm -rf "$probe"
  mkdir -p "$probe/from/inner"
  touch "$probe/from/inner/file"
  mv "$probe/from" "$probe/to" ||
    die "$BUCKET$NFS: directories cannot be renamed; a bucket needs" \
      '--enable-hierarchical-namespace'
  rm -rf "$probe"
}

setup() {
  local uv
  if running; then die 'a run is going on; launch/stop.sh ends it'; fi
  printf '%s=%q\n' BUCKET "$BUCKET" NFS "$NFS" MOUNT "$MOUNT" >"$ROOT/settings"
  mount_shared

  rm -rf "$ROOT/source.new"
  if [[ -n ${REPOSITORY:-} ]]; then
    git clone --quiet -- "$REPOSITORY" "$ROOT/source.new"
    git -C "$ROOT/source.new" checkout --quiet --detach "$REVISION"
  else
    mkdir "$ROOT/source.new"
    tar -xzf "$ROOT/source.tar.gz" -C "$ROOT/source.new"
  fi
  rm -rf "$ROOT/source"
  mv "$ROOT/source.new" "$ROOT/source"
  chmod 600 "$ROOT/secret.new"
  mv -f "$ROOT/secret.new" "$ROOT/secret"

  # The images' Python is too old; uv brings its own.
  uv=$(command -v uv || echo "$ROOT/bin/uv")
  if [[ ! -x $uv ]]; then
    curl -fsSL "https://astral.sh/uv/$UV_VERSION/install.sh" |
      env UV_UNMANAGED_INSTALL="$ROOT/bin" sh
  fi
  "$uv" venv --quiet --allow-existing --python "$PYTHON" "$ROOT/venv"
  "$uv" pip install --quiet --python "$ROOT/venv/bin/python" \
    --constraint "$ROOT/source/launch/constraints.txt" \
    --editable "$ROOT/source${EXTRA:+[$EXTRA]}"
  say 'set up'
}

# The workdir among the flags has to outlive the machine.
check_workdir() {
  local word before='' workdir=''
  for word in "$@"; do
    case $word in
      --workdir=* | -workdir=*) workdir=${word#*=} ;;
      *) [[ $before != --workdir && $before != -workdir ]] || workdir=$word ;;
    esac
    before=$word
  done
  [[ $workdir == /* ]] || die "--workdir=$workdir: give an absolute path, on" \
    'storage that all workers share'
  [[ -z $BUCKET$NFS || $workdir == "$MOUNT"/* ]] ||
    die "--workdir=$workdir: is not under $MOUNT, where $BUCKET$NFS is mounted"
}

run() {
  [[ -x $ROOT/venv/bin/python && -s $ROOT/secret ]] ||
    die 'not set up: launch/setup.sh first'
  check_workdir "$@"
  mount_shared
  exec 9>"$ROOT/lock"
  # A look at the lock holds it for a moment.
  if ! flock --wait 0.2 9; then
    say "running already, pid $(cat "$ROOT/pid"); not started again"
    return
  fi
  rm -f "$ROOT/pid" "$ROOT/exit" "$ROOT/stopped"
  {
    printf '\n%s: python -m adanat_jax.main' "$(date -u +%FT%TZ)"
    printf ' %q' "$@"
    echo
  } >>"$ROOT/log"
  nohup setsid bash "$ROOT/worker.sh" hold "$@" >>"$ROOT/log" 2>&1 </dev/null &
  exec 9>&-
  until [[ -s $ROOT/pid ]] || ! running; do sleep 0.1; done
  say "started, pid $(cat "$ROOT/pid"), log $ROOT/log"
}

# What `run` leaves in the background, with the lock as its file 9.
hold() {
  local code=0
  ADANAT_JAX_SECRET=$(cat "$ROOT/secret")
  export ADANAT_JAX_SECRET
  cd "$ROOT/source"
  "$ROOT/venv/bin/python" -m adanat_jax.main "$@" &
  echo $! >"$ROOT/pid"
  wait $! || code=$?
  echo "$code" >"$ROOT/exit"
}

# One line, 'NAME: STATE ...'; supervise.sh reads it.
status() {
  local code=''
  if running; then
    say "running (pid $(cat "$ROOT/pid"))"
    return
  fi
  # Not before: a run that ends meanwhile leaves its code, then the lock.
  [[ ! -e $ROOT/exit ]] || code=$(cat "$ROOT/exit")
  if [[ ! -x $ROOT/venv/bin/python ]]; then
    say 'absent (not set up)'
  elif [[ ! -e $ROOT/pid ]]; then
    say 'idle (never run)'
  elif [[ $code == 0 ]]; then
    say 'finished'
  elif [[ -e $ROOT/stopped ]]; then
    say 'stopped (by launch/stop.sh)'
  else
    case $code in
      '') say 'lost (it left no exit code: the machine restarted, or memory)' ;;
      2) say 'refused (wrong flags or config, or numbers; see the log)' ;;
      74) say "failed (exit code $code: cannot write; see the log)" ;;
      130 | 143) say "interrupted (exit code $code: asked to stop, saved)" ;;
      *) say "failed (exit code $code; see the log)" ;;
    esac
  fi
}

logs() {
  local flags=()
  local flag
  for flag in "$@"; do
    case $flag in
      --lines=*) flags+=("$flag") ;;
      --follow) flags+=(-F) ;;
    esac
  done
  say "$ROOT/log"
  touch "$ROOT/log"
  exec tail "${flags[@]}" "$ROOT/log"
}

# end SIGNAL: sends it to the run, if there is one, and waits for its end.
end() {
  if ! running; then
    say 'not running'
    return
  fi
  kill "-$1" "$(cat "$ROOT/pid")" || true
  while running; do sleep 0.2; done
  say "ended with exit code $(cat "$ROOT/exit" 2>/dev/null || echo unknown)"
}

stop() {
  touch "$ROOT/stopped"
  if [[ ${1:-} == --kill ]]; then end KILL; else end TERM; fi
}

# A function, so that bash has read the whole file before setup.sh changes it.
main() {
  local verb=${1:-}
  shift || true
  # setup is given them; the others use what it was given.
  : "${BUCKET:=}" "${NFS:=}" "${MOUNT:=}"
  # shellcheck disable=SC1091
  [[ $verb == setup || ! -e $ROOT/settings ]] || . "$ROOT/settings"
  case $verb in
    setup) setup ;;
    run) run "$@" ;;
    hold) hold "$@" ;;
    status) status ;;
    logs) logs "$@" ;;
    stop) stop "$@" ;;
    kill) end KILL ;;
    *) die "$verb: not one of setup, run, status, logs, stop, kill" ;;
  esac
  exit
}
main "$@"
