#!/usr/bin/env bash
# Train on Cloud TPU with queued resources, on one or several slices, from the request to the end of the run.
#
#   tools/tpu/pod.sh COMMAND --name=emu --zone=us-east5-a --project=PROJECT [OPTIONS] [-- OPTIONS OF train]
#
#   create   request the slices: --type=v5p-128 [--slices=2] [--spot | --reservation=NAME] [--runtime=IMAGE]
#   wait     return when the slices are ready
#   setup    copy this checkout (HEAD) to every worker and install its environment
#   doctor   check all workers at the same time: versions, chips, collectives, write speed of --workdir
#   start    start or resume the run: --workdir=gs://BUCKET/RUN -- --config=configs/pretrain_14b.py
#   watch    follow the log of the first worker
#   status   print the state of the request, and of the run on every worker
#   stop     let the run finish its step, save and end
#   resume   after a preemption: delete, create, wait, setup, start (with the options of all of these)
#   keep     start, then check every five minutes, and resume after a preemption until the run has ended
#   delete   delete the slices
#
#   --dry-run prints the commands instead of running them. TPU_NAME, TPU_ZONE and TPU_PROJECT replace the first three
#   options.

set -euo pipefail
FOLDER=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tools/tpu/common.sh
source "$FOLDER/common.sh"

NAME=${TPU_NAME:-} ZONE=${TPU_ZONE:-} PROJECT=${TPU_PROJECT:-}
TYPE='' SLICES=1 SPOT=0 RESERVATION='' RUNTIME='' WORKDIR=''
TRAIN=()

main() {
  [[ $# -gt 0 && $1 != --help && $1 != -h ]] || { show_help "${BASH_SOURCE[0]}"; return; }
  local command=$1
  shift
  read_options "$@"
  need "$NAME" --name emu
  need "$ZONE" --zone us-east5-a
  need "$PROJECT" --project my-project
  case $command in
    create | wait | setup | doctor | start | watch | status | stop | resume | keep | delete) "do_$command" ;;
    *) fail "there is no command '$command'; tools/tpu/pod.sh --help lists them" ;;
  esac
}

read_options() {
  while (($#)); do
    case $1 in
      --name=*) NAME=${1#*=} ;;
      --zone=*) ZONE=${1#*=} ;;
      --project=*) PROJECT=${1#*=} ;;
      --type=*) TYPE=${1#*=} ;;
      --slices=*) SLICES=${1#*=} ;;
      --runtime=*) RUNTIME=${1#*=} ;;
      --reservation=*) RESERVATION=${1#*=} ;;
      --workdir=*) WORKDIR=${1#*=} ;;
      --spot) SPOT=1 ;;
      --dry-run) DRY_RUN=1 ;;
      --) shift; TRAIN=("$@"); return ;;
      *) fail "unknown option '$1'; tools/tpu/pod.sh --help lists the options" ;;
    esac
    shift
  done
}

# queued SUBCOMMAND WORDS...: run gcloud on the queued resource.
queued() {
  run gcloud compute tpus queued-resources "$1" "${@:2}" "--zone=$ZONE" "--project=$PROJECT"
}

# on_all COMMAND: run a command on all workers of all slices.
on_all() {
  queued ssh "$NAME" --node=all --worker=all "--command=$1"
}

runtime() {
  case $TYPE in
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

do_create() {
  need "$TYPE" --type v5p-128
  local words=("$NAME" "--accelerator-type=$TYPE" "--runtime-version=${RUNTIME:-$(runtime)}")
  if ((SLICES > 1)); then
    words+=("--node-count=$SLICES" "--node-prefix=$NAME")
  else
    words+=("--node-id=$NAME")
  fi
  ((SPOT)) && words+=(--spot)
  [[ -z $RESERVATION ]] || words+=(--reserved "--reservation=$RESERVATION")
  queued create "${words[@]}"
}

state() {
  queued describe "$NAME" '--format=value(state.state)'
}

do_wait() {
  if ((DRY_RUN)); then
    state
    return
  fi
  local now
  while now=$(state); [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDING | SUSPENDED) fail "the request is $now: run '$0 status', then '$0 resume'" ;;
    esac
    echo "$(date +%T) $now"
    sleep "${WATCH_SECONDS:-60}"
  done
  echo "$(date +%T) ACTIVE"
}

# Say which files of the checkout differ from HEAD, as the workers get HEAD.
list_uncommitted() {
  local files
  files=$(git -C "$FOLDER/../.." status --porcelain --untracked-files=all 2>/dev/null | cut -c4-) || return 0
  [[ -z $files ]] || { echo "# not committed, so not copied to the workers:"; echo "#   ${files//$'\n'/$'\n'#   }"; }
}

do_setup() {
  local archive=/tmp/emu_jax-$NAME.tar.gz
  list_uncommitted
  run git -C "$FOLDER/../.." archive --format=tar.gz "--output=$archive" HEAD
  queued scp "$archive" "$NAME:emu_jax.tar.gz" --node=all --worker=all
  on_all 'mkdir -p emu_jax && tar xzf emu_jax.tar.gz -C emu_jax && bash emu_jax/tools/tpu/worker.sh install'
}

do_doctor() {
  on_all "bash emu_jax/tools/tpu/worker.sh doctor${WORKDIR:+ --workdir=$(quoted "$WORKDIR/doctor")}"
}

do_start() {
  need "$WORKDIR" --workdir gs://BUCKET/RUN
  ((${#TRAIN[@]})) || fail "the options of train are missing, as in -- --config=configs/pretrain_14b.py"
  local line='bash emu_jax/tools/tpu/worker.sh start' word
  for word in "${TRAIN[@]}" "--workdir=$WORKDIR"; do
    line+=" $(quoted "$word")"
  done
  on_all "$line"
}

do_watch() {
  queued ssh "$NAME" --node=0 --worker=0 '--command=tail -n 40 -F emu_jax/train.log'
}

do_status() {
  queued describe "$NAME" '--format=yaml(name,state,tpu.nodeSpec)'
  on_all 'bash emu_jax/tools/tpu/worker.sh status'
}

do_stop() {
  on_all 'bash emu_jax/tools/tpu/worker.sh stop'
}

do_resume() {
  do_delete || true # there may be no request
  do_create
  do_wait
  do_setup
  do_start
}

do_keep() {
  do_start
  if ((DRY_RUN)); then
    state
    echo "# every five minutes, if SUSPENDED or FAILED:"
    do_resume
    return
  fi
  local now run
  while sleep "${WATCH_SECONDS:-300}"; do
    now=$(state) || continue
    case $now in
      FAILED | SUSPENDING | SUSPENDED)
        echo "$(date +%T) $now: requesting the slices again"
        do_resume
        ;;
      ACTIVE)
        run=$(queued ssh "$NAME" --node=0 --worker=0 '--command=cat emu_jax/train.state' 2>/dev/null) || continue
        case $run in
          ended) echo "$(date +%T) the run has ended; '$0 delete' deletes the slices" && return ;;
          stopped | failed) fail "the run has $run: '$0 status' prints the last lines of its log" ;;
        esac
        ;;
    esac
  done
}

do_delete() {
  queued delete "$NAME" --force --quiet
}

main "$@"
