#!/bin/bash
# Runs one command on every worker of a TPU slice: asks for the slice, waits, installs jcl, runs, goes on
# after pre-emption, and deletes the slice. From the repository's root, on a machine that stays awake:
#
#   export PROJECT=my-project ZONE=us-west4-a NAME=eras BUCKET=my-bucket SPOT=yes
#   tpu/queued_resource.sh jcl run eras --mesh fsdp=-1 --distributed auto --out out/eras --resume
#
# The bucket is mounted at out/ on every worker: what lies elsewhere is lost with the slice.

PROJECT=${PROJECT:-}                           # Google Cloud project
ZONE=${ZONE:-}                                 # where your quota is: gcloud compute tpus locations list
NAME=${NAME:-}                                 # of the slice and of its request
BUCKET=${BUCKET:-}                             # Cloud Storage bucket for --out, without gs://
ACCELERATOR=${ACCELERATOR:-v5litepod-16}       # gcloud compute tpus accelerator-types list --zone=$ZONE
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}        # v5p: v2-alpha-tpuv5, v6e: v2-alpha-tpuv6e
SPOT=${SPOT:-}                                 # anything: a spot slice, cheaper, may be taken away at any time
RETRIES=${RETRIES:-5}                          # restarts on a slice after a lost process
PAUSE=${PAUSE:-30}                             # seconds between two looks at the queue

set -uo pipefail

say() { echo "tpu/queued_resource.sh: $*" >&2; }
fail() {
  say "$@"
  exit 2
}
for name in PROJECT ZONE NAME BUCKET ACCELERATOR RUNTIME; do
  [[ -n ${!name} ]] || fail "$name is empty; set it at the top of the script or in the environment"
done
[[ $BUCKET != gs://* ]] || fail "BUCKET is '$BUCKET'; say its name without gs://"
[[ $# -gt 0 ]] || fail "there is no command; put it after the script: tpu/queued_resource.sh jcl run ..."
[[ -r pyproject.toml && -r tpu/flags.sh ]] || fail "$PWD isn't the repository's root; call the script from there"

at=(--project="$PROJECT" --zone="$ZONE")

state() { # ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; empty: no such request; UNKNOWN: no answer
  local try
  for try in 1 2 3 4 5; do
    gcloud compute tpus queued-resources list "${at[@]}" --filter="name~/$NAME\$" \
      --format="value(state.state)" && return
    say "gcloud doesn't answer (try $try of 5); its line above says why"
    sleep "$PAUSE"
  done
  echo UNKNOWN
}
on_all() { gcloud compute tpus tpu-vm ssh "$NAME" "${at[@]}" --worker=all --command="$1"; }
delete() {
  [[ -z $(state) ]] ||
    gcloud compute tpus queued-resources delete "$NAME" "${at[@]}" --force --quiet
}

# The slice costs money until it is deleted, however this script ends.
trap 'say "deleting $NAME"; delete || say "$NAME could not be deleted and costs money: delete it by hand"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

create() {
  gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${at[@]}" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
    --scopes=https://www.googleapis.com/auth/cloud-platform ${SPOT:+--spot}
}
wait_until_active() {
  local now
  while now=$(state); [[ $now != ACTIVE ]]; do
    case $now in
    SUSPENDING | SUSPENDED) return 1 ;; # a spot slice, taken away before it began
    FAILED | DELETING | UNKNOWN | "")
      fail "the request for $NAME is ${now:-gone}; gcloud compute tpus queued-resources describe $NAME ${at[*]} says why"
      ;;
    esac
    say "$NAME is $now"
    sleep "$PAUSE"
  done
}

# Python: the machines' own is 3.10, jcl needs 3.11. The bucket: no caching of names, for a worker must see
# at once what another wrote. Renames: a checkpoint appears by renaming its folder, which in a bucket without
# hierarchical namespace copies file by file and is refused unless allowed.
# shellcheck disable=SC2016  # the workers expand it
install='set -e
mkdir -p ~/jcl ~/out && tar -xzf ~/jcl.tgz -C ~/jcl && ln -sfn ~/out ~/jcl/out
python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --allow-existing --python 3.12 ~/venv
~/.local/bin/uv pip install --quiet --python ~/venv/bin/python "$HOME/jcl[text]" "jax[tpu]"
if ! command -v gcsfuse >/dev/null; then
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  sudo apt-get -o DPkg::Lock::Timeout=300 -qq update
  sudo apt-get -o DPkg::Lock::Timeout=300 -qq install -y gcsfuse
fi
mountpoint -q ~/out || gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
  --rename-dir-limit=100000 '"'$BUCKET'"' ~/out'

prepare() {
  local archive
  archive=$(mktemp) &&
    tar -czf "$archive" pyproject.toml README.md LICENSE jcl experiments tpu &&
    gcloud compute tpus tpu-vm scp "$archive" "$NAME:jcl.tgz" "${at[@]}" --worker=all &&
    on_all "$install"
  local code=$?
  rm -f "$archive"
  return $code
}

printf -v command '%q ' "$@"
lost=0
ready=""
while :; do
  case $(state) in
  ACTIVE) ;;
  UNKNOWN) fail "gcloud doesn't answer; its lines above say why" ;;
  *)
    delete
    create || fail "the request for $NAME was refused; gcloud's lines above say why"
    wait_until_active || continue
    ready=""
    ;;
  esac
  if [[ -z $ready ]] && ! prepare; then
    [[ $(state) == ACTIVE ]] || continue # taken away meanwhile
    fail "jcl could not be installed on $NAME; the lines above say why"
  fi
  ready=yes
  on_all "cd ~/jcl && PATH=~/venv/bin:\$PATH && . tpu/flags.sh tpu && exec $command"
  code=$?
  if [[ $code -ne 0 && $(state) != ACTIVE ]]; then
    say "$NAME was taken away; asking for another"
  elif [[ $code -eq 75 ]]; then
    say "the run saved and stopped; going on"
  elif [[ $code -eq 76 || ($code -gt 128 && $code -ne 130 && $code -ne 255) ]] && [[ $lost -lt $RETRIES ]]; then
    # 76 by those who noticed, 137 and its like by the one that a signal killed; 255 is ssh's own
    lost=$((lost + 1))
    say "a process was lost; going on ($lost of $RETRIES)"
  else
    say "the command ended with exit code $code"
    exit "$code"
  fi
done
