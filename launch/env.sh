# shellcheck shell=bash
# The names that the scripts here use. Write yours between the quotes after
# `:-`, or set them in the environment, which wins.

# The slice.
: "${PROJECT:=}"          # my-project
: "${ZONE:=}"             # us-central2-b
: "${NAME:=}"             # adanat; of the queued resource and of the slice
: "${ACCELERATOR_TYPE:=}" # v4-32
: "${RUNTIME_VERSION:=}"  # tpu-ubuntu2204-base

# Machines that are there already, instead of a slice: names that ssh knows,
# separated by spaces; `local` is this machine.
: "${HOSTS:=}" # gpu-1

# What is installed on each worker.
: "${EXTRA=tpu}"      # or cuda; empty for CPUs alone
: "${PYTHON:=3.11}"   # the version that constraints.txt was made with
: "${REPOSITORY:=}"   # https://github.com/you/adanat_jax, to be cloned instead
: "${REVISION:=}"     # of copying this working tree; the commit or tag

# Storage that all workers see at MOUNT: a bucket, or an NFS share.
: "${BUCKET:=}" # my-bucket, with hierarchical namespace
: "${NFS:=}"    # 10.0.0.2:/share
: "${MOUNT:=/mnt/shared}"

# How supervise.sh watches.
: "${POLL:=60}"         # seconds between two looks
: "${PATIENCE:=5}"      # looks at a run of which a part has ended
: "${MAX_FAILURES:=10}" # failures without a preemption in between: it gives up
