#!/usr/bin/env bash
# Commands of pod.sh on each worker of a slice, in its home directory.
#
#   worker.sh install              install the environment of emu_jax
#   worker.sh doctor [OPTIONS]     run `python -m emu_jax doctor OPTIONS`
#   worker.sh start OPTIONS        run `python -m emu_jax train OPTIONS` in the background, with log emu_jax/train.log
#   worker.sh status               print the state of the run and the end of its log
#   worker.sh stop                 let the run finish its step, save and end
#
#   train.state is one of: running, ended (all steps are done), stopped (by this script, and saved), failed (the last line
#   of the log says what to fix).

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
STATE=train.state PID=train.pid LOG=train.log

install() {
  # The VM images have Python 3.10; uv installs 3.12.
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  export PATH="$HOME/.local/bin:$PATH"
  uv venv --allow-existing --python 3.12 .venv
  uv pip install --python .venv/bin/python -c constraints.txt -e '.[tpu]'
}

is_running() {
  [[ -f $PID ]] && kill -0 "$(cat "$PID")" 2>/dev/null
}

start() {
  if is_running; then
    echo "already running as $(cat "$PID")"
    return
  fi
  nohup bash tools/tpu/worker.sh loop "$@" >>"$LOG" 2>&1 </dev/null &
  echo "started; log in emu_jax/$LOG"
}

# Run `train`, and run it again after a failure or a stop of another worker; it resumes from the newest checkpoint.
# End when all steps are done, when this worker is stopped, and after exit code 2, which another attempt would repeat.
loop() {
  local code child='' stopping=0
  echo $$ >"$PID"
  trap 'stopping=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null' TERM
  echo running >"$STATE"
  while true; do
    .venv/bin/python -u -m emu_jax train "$@" &
    child=$!
    code=0
    wait "$child" || code=$?
    # A signal to this script ends `wait` while the run is still saving.
    while kill -0 "$child" 2>/dev/null; do
      code=0
      wait "$child" || code=$?
    done
    if ((code == 0)) && tail -n 5 "$LOG" | grep -q '^finished '; then
      echo ended >"$STATE"
      return
    elif ((stopping)); then
      echo stopped >"$STATE"
      return
    elif ((code == 2)); then
      echo failed >"$STATE"
      return 2
    fi
    echo "worker.sh: train ended with code $code; restarting in ${RETRY_SECONDS:-20} s"
    sleep "${RETRY_SECONDS:-20}"
  done
}

case ${1:-} in
  install) install ;;
  doctor) .venv/bin/python -m emu_jax doctor "${@:2}" ;;
  start) start "${@:2}" ;;
  loop) loop "${@:2}" ;;
  status)
    echo "$(hostname): $(cat "$STATE" 2>/dev/null || echo 'not started')$(is_running || echo ', no process')"
    tail -n 2 "$LOG" 2>/dev/null || true
    ;;
  stop) is_running && kill -TERM "$(cat "$PID")" ;;
  *) sed -n '2,/^$/s/^#[ ]\{0,1\}//p' "${BASH_SOURCE[0]}" ;;
esac
