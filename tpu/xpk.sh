#!/bin/bash
# Starts a command on a TPU slice of a GKE cluster that XPK made (pip install xpk; xpk 1.16 was read for this).
#
#   export PROJECT=my-project ZONE=us-west4-a CLUSTER=my-cluster NAME=eras STORAGE=out \
#     IMAGE=us-docker.pkg.dev/my-project/jcl/tpu:1
#   tpu/xpk.sh jcl run eras --mesh fsdp=-1 --distributed auto --out /out/eras --resume

PROJECT=${PROJECT:-}                        # Google Cloud project
ZONE=${ZONE:-}                              # of the cluster
CLUSTER=${CLUSTER:-}                        # xpk cluster list
NAME=${NAME:-}                              # of the workload
IMAGE=${IMAGE:-}                            # built from tpu/Dockerfile and pushed
STORAGE=${STORAGE:-}                        # a bucket mounted for --out: xpk storage list, README.md says how to make it
ACCELERATOR=${ACCELERATOR:-v5litepod-16}    # one slice
SLICES=${SLICES:-1}                         # to train on together
RESTARTS=${RESTARTS:-100}                   # after pre-emption and lost machines
SPOT=${SPOT:-}                              # anything: spot machines, where the cluster provisions by itself

set -euo pipefail

fail() {
  echo "tpu/xpk.sh: $*" >&2
  exit 2
}
for name in PROJECT ZONE CLUSTER NAME IMAGE STORAGE ACCELERATOR SLICES RESTARTS; do
  [[ -n ${!name} ]] || fail "$name is empty; set it at the top of the script or in the environment"
done
[[ $# -gt 0 ]] || fail "there is no command; put it after the script: tpu/xpk.sh jcl run ..."

printf -v command '%q ' "$@"
# XPK restarts on 42 and from 127; 75 is "saved, go on" and 76 "a process was lost".
exec xpk workload create --project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" --workload="$NAME" \
  --tpu-type="$ACCELERATOR" --num-slices="$SLICES" --docker-image="$IMAGE" --storage="$STORAGE" \
  --max-restarts="$RESTARTS" --restart-on-exit-codes=75,76 --termination-grace-period-seconds=60 \
  ${SPOT:+--spot} --command="cd /jcl && . tpu/flags.sh tpu && exec ${command% }"
