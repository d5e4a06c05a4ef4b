#!/usr/bin/env bash
# Train on GKE with XPK: a cluster with TPU node pools, an image of this checkout, a workload that restarts on failure.
#
#   tools/tpu/gke.sh COMMAND --cluster=emu --zone=us-east5-a --project=PROJECT [OPTIONS] [-- OPTIONS OF train]
#
#   cluster   create it: --type=v5p-128 [--slices=2] [--spot | --on-demand | --reservation=NAME | --flex]
#   image     build an image of this checkout and push it: --image=REGION-docker.pkg.dev/PROJECT/emu/emu_jax:TAG
#   start     --name=RUN --type=v5p-128 [--slices=2] --image=... --workdir=gs://BUCKET/RUN -- --config=configs/pretrain_14b.py
#   status    list the workloads of the cluster
#   watch     follow the log of the first worker: --name=RUN
#   stop      end a workload: --name=RUN; each worker receives SIGTERM, saves and exits
#   delete    delete the cluster
#
#   --dry-run prints the commands instead of running them. Required tools: gcloud, kubectl, docker, `pip install xpk`.

set -euo pipefail
FOLDER=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tools/tpu/common.sh
source "$FOLDER/common.sh"

CLUSTER='' ZONE=${TPU_ZONE:-} PROJECT=${TPU_PROJECT:-}
NAME='' TYPE='' SLICES=1 CAPACITY=--on-demand IMAGE='' WORKDIR=''
TRAIN=()

main() {
  [[ $# -gt 0 && $1 != --help && $1 != -h ]] || { show_help "${BASH_SOURCE[0]}"; return; }
  local command=$1
  shift
  read_options "$@"
  case $command in
    image) ;;
    *)
      need "$CLUSTER" --cluster emu
      need "$ZONE" --zone us-east5-a
      need "$PROJECT" --project my-project
      ;;
  esac
  case $command in
    cluster | image | start | status | watch | stop | delete) "do_$command" ;;
    *) fail "there is no command '$command'; tools/tpu/gke.sh --help lists them" ;;
  esac
}

read_options() {
  while (($#)); do
    case $1 in
      --cluster=*) CLUSTER=${1#*=} ;;
      --zone=*) ZONE=${1#*=} ;;
      --project=*) PROJECT=${1#*=} ;;
      --name=*) NAME=${1#*=} ;;
      --type=*) TYPE=${1#*=} ;;
      --slices=*) SLICES=${1#*=} ;;
      --image=*) IMAGE=${1#*=} ;;
      --workdir=*) WORKDIR=${1#*=} ;;
      --spot | --on-demand | --flex | --reservation=*) CAPACITY=$1 ;;
      --dry-run) DRY_RUN=1 ;;
      --) shift; TRAIN=("$@"); return ;;
      *) fail "unknown option '$1'; tools/tpu/gke.sh --help lists the options" ;;
    esac
    shift
  done
}

# on_cluster NOUN VERB WORDS...: run xpk on the cluster.
on_cluster() {
  run xpk "$@" "--cluster=$CLUSTER" "--zone=$ZONE" "--project=$PROJECT"
}

do_cluster() {
  need "$TYPE" --type v5p-128
  on_cluster cluster create "--tpu-type=$TYPE" "--num-slices=$SLICES" "$CAPACITY"
}

do_image() {
  need "$IMAGE" --image us-docker.pkg.dev/my-project/emu/emu_jax:1
  run docker build "--file=$FOLDER/Dockerfile" "--tag=$IMAGE" "$FOLDER/../.."
  run docker push "$IMAGE"
}

do_start() {
  need "$NAME" --name emu-14b
  need "$TYPE" --type v5p-128
  need "$IMAGE" --image us-docker.pkg.dev/my-project/emu/emu_jax:1
  need "$WORKDIR" --workdir gs://BUCKET/RUN
  ((${#TRAIN[@]})) || fail "the options of train are missing, as in -- --config=configs/pretrain_14b.py"
  local line='exec python -m emu_jax train' word
  for word in "${TRAIN[@]}" "--workdir=$WORKDIR"; do
    line+=" $(quoted "$word")"
  done
  on_cluster workload create "--workload=$NAME" "--tpu-type=$TYPE" "--num-slices=$SLICES" "--docker-image=$IMAGE" \
    --max-restarts=50 "--command=$line"
}

do_status() {
  on_cluster workload list
}

do_watch() {
  need "$NAME" --name emu-14b
  run kubectl logs --follow --tail=40 --selector="jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
}

do_stop() {
  need "$NAME" --name emu-14b
  on_cluster workload delete "--workload=$NAME"
}

do_delete() {
  on_cluster cluster delete
}

main "$@"
