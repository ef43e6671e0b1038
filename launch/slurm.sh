#!/usr/bin/env bash
# Runs `python -m adanat_jax.main FLAG...` on the nodes of a SLURM cluster, one
# process for each GPU. From the directory of the repository:
#
#   sbatch --nodes=2 launch/slurm.sh --config=FILE --workdir=DIR [FLAG]...
#
# DIR: on storage that all nodes share. Options of sbatch before the script's
# name win over those below. VENV is the environment, .venv if it is not set.
#
# Five minutes before the time is up the run saves and the job queues itself
# again; so it does, by SLURM, when it is preempted or a node fails. `scancel
# --signal=TERM JOB.0` saves and ends it.
#
# JAX gives each process one GPU, by its number on the node.
#SBATCH --job-name=adanat
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# SLURM runs a copy of this file; the repository is where sbatch was called.
cd "${SLURM_SUBMIT_DIR:?is not set; start this with sbatch}"
# shellcheck disable=SC1091  # The user's.
. "${VENV:-.venv}/bin/activate"

# By this the processes know each other; srun passes it on.
if [[ -z ${ADANAT_JAX_SECRET:-} ]]; then
  ADANAT_JAX_SECRET=$(od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n')
fi
export ADANAT_JAX_SECRET

out_of_time=''
# SLURM tells this shell, and not the step, when the time is nearly up. (srun
# would not pass the signal on but kill its processes.)
trap 'out_of_time=yes cut=yes; scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1

# --wait: when one process has ended, the others have so many seconds.
srun --wait=300 python -m adanat_jax.main --distributed=auto "$@" &
step=$!
# A trap cuts `wait` short, and by its end the step may have ended, too: Bash
# keeps the code.
cut=yes
while [[ -n $cut ]]; do
  cut='' code=0
  wait "$step" || code=$?
done

if [[ -n $out_of_time && $code == 143 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
