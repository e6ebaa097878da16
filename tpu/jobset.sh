#!/bin/bash
# Starts a command on a TPU slice of a GKE cluster: fills in tpu/jobset.yaml and hands it to kubectl.
#
#   export NAME=eras IMAGE=us-docker.pkg.dev/my-project/jcl/tpu:1 BUCKET=my-bucket SERVICE_ACCOUNT=jcl
#   tpu/jobset.sh jcl run eras --mesh fsdp=-1 --distributed auto --out /out/eras --resume
#
# The bucket is mounted at /out. DRY=yes prints what kubectl would get.

NAME=${NAME:-}                                      # of the JobSet
IMAGE=${IMAGE:-}                                    # built from tpu/Dockerfile and pushed
BUCKET=${BUCKET:-}                                  # Cloud Storage bucket for --out, without gs://
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-}                # of Kubernetes, with roles/storage.objectUser on the bucket
ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice}    # v5p: tpu-v5p-slice, v6e: tpu-v6e-slice
TOPOLOGY=${TOPOLOGY:-4x4}                           # of the node pool
CHIPS=${CHIPS:-4}                                   # of one machine (ct5lp-hightpu-4t has 4)
SLICES=${SLICES:-1}                                 # node pools of that topology to train on together
RESTARTS=${RESTARTS:-100}                           # after pre-emption and lost machines

set -euo pipefail

fail() {
  echo "tpu/jobset.sh: $*" >&2
  exit 2
}
names=(NAME IMAGE BUCKET SERVICE_ACCOUNT ACCELERATOR TOPOLOGY CHIPS SLICES RESTARTS)
for name in "${names[@]}"; do
  [[ -n ${!name} ]] || fail "$name is empty; set it at the top of the script or in the environment"
done
[[ $BUCKET != gs://* ]] || fail "BUCKET is '$BUCKET'; say its name without gs://"
for name in CHIPS SLICES RESTARTS; do
  [[ ${!name} =~ ^[1-9][0-9]*$ ]] || fail "$name is '${!name}'; say a whole number from 1"
done
[[ $TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "TOPOLOGY is '$TOPOLOGY'; say one like 4x4 or 4x4x4"
chips=$((${TOPOLOGY//x/*}))
[[ $((chips % CHIPS)) -eq 0 ]] || fail "TOPOLOGY $TOPOLOGY has $chips chips, which machines of CHIPS=$CHIPS don't divide"
[[ $# -gt 0 ]] || fail "there is no command; put it after the script: tpu/jobset.sh jcl run ..."

# shellcheck disable=SC2034  # read by name below
MACHINES=$((chips / CHIPS))
printf -v COMMAND '%q ' "$@"
COMMAND=${COMMAND% }
[[ $COMMAND != *$'\n'* ]] || fail "the command has a line break; write it on one line"

text=$(<"$(dirname "$0")/jobset.yaml")
for name in "${names[@]}" MACHINES COMMAND; do
  text=${text//"\${$name}"/"${!name}"}
done
if [[ -n ${DRY:-} ]]; then
  printf '%s\n' "$text"
else
  kubectl create -f - <<<"$text"
fi
