#!/bin/bash
# Trains on nodes of eight H100s under Slurm and goes on by itself after pre-emption and time limits.
# From the repository's root:
#
#   export VENV=/shared/venv
#   sbatch --nodes=2 --account=... --partition=... tpu/slurm.sh \
#     jcl run eras --mesh fsdp=-1 --distributed auto --out /shared/runs/eras --resume
#
# Everything after the script's name is the command; flags of sbatch before it win over the lines below.
#SBATCH --job-name=jcl
#SBATCH --nodes=2
# One process per GPU: under Slurm JAX gives a process the one device with number SLURM_LOCALID.
#SBATCH --ntasks-per-node=8
# For the node and not --gpus-per-task: that would show every process one GPU, number 0.
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
# A lost node, too, puts the job back into the queue; the log goes on where it was.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# 60 s before the time limit this script (B:) is told. If a save takes longer: sbatch --signal=B:TERM@300
#SBATCH --signal=B:TERM@60

VENV=${VENV:-}         # virtual environment with jcl-kit[text] and jax[cuda13], on storage that all nodes see
RETRIES=${RETRIES:-20} # restarts of any kind after which a lost process ends the job

set -uo pipefail

fail() {
  echo "tpu/slurm.sh: $*" >&2
  exit 2
}
[[ -n $VENV ]] || fail "VENV is empty; set it to the virtual environment that all nodes see"
[[ -x $VENV/bin/python ]] || fail "VENV is '$VENV', which has no bin/python; say a virtual environment"
[[ $# -gt 0 ]] || fail "there is no command; put it after the script: sbatch tpu/slurm.sh jcl run ..."
[[ -n ${SLURM_JOB_ID:-} ]] || fail "SLURM_JOB_ID is empty; start this script with sbatch"

# Slurm runs a copy of this script from its spool, so the repository is where sbatch was called.
cd "${SLURM_SUBMIT_DIR:-.}" || fail "SLURM_SUBMIT_DIR is '$SLURM_SUBMIT_DIR', which can't be entered"
[[ -r tpu/flags.sh ]] || fail "$PWD has no tpu/flags.sh; call sbatch in the repository's root"
# shellcheck source=tpu/flags.sh
. tpu/flags.sh gpu
export PATH="$VENV/bin:$PATH"
# Since Slurm 22.05 srun no longer takes --cpus-per-task from sbatch.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

# To the processes through Slurm, which leaves this script alone. Not to srun: it answers SIGTERM by
# killing its processes, and nothing would be saved.
told=""
trap 'told=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM

# --kill-on-bad-exit=0: when one process is lost, the others end by themselves, with a sentence.
srun --kill-on-bad-exit=0 "$@" &
step=$!
while # a signal cuts a wait short
  told=""
  wait "$step"
  code=$? # the highest of all processes
  [[ -n $told ]]
do :; done

again=""
if [[ $code -eq 75 ]]; then
  again="the run saved and stopped"
elif [[ $code -eq 76 || ($code -gt 128 && $code -ne 130) ]] && # itself by a signal: 137 is above their 76
  [[ ${SLURM_RESTART_COUNT:-0} -lt $RETRIES ]]; then
  again="a process was lost"
fi
if [[ -n $again ]]; then
  echo "tpu/slurm.sh: $again (exit code $code); job $SLURM_JOB_ID goes back into the queue" >&2
  scontrol requeue "$SLURM_JOB_ID" ||
    echo "tpu/slurm.sh: Slurm didn't take job $SLURM_JOB_ID back; start it again with the same command" >&2
fi
exit "$code"
