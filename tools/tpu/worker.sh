#!/usr/bin/env bash
# What pod.sh runs on each worker of a slice, in the home directory.
#
#   worker.sh install              the environment of emu_jax
#   worker.sh doctor [WORDS]       `python -m emu_jax doctor WORDS`
#   worker.sh start WORDS          `python -m emu_jax train WORDS` in the background, log in emu_jax/train.log
#   worker.sh status | stop
#
#   train.state holds: running, ended (all steps are done), stopped (told to, and saved), mistaken (the log's last line
#   says what to mend).

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
STATE=train.state PID=train.pid LOG=train.log

install() {
  # The images bring Python 3.10; uv brings its own.
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

# Runs `train` again when it fails, or stops because another worker was told to: it goes on from the newest checkpoint.
# It is over when train says so, when this worker is told to stop, and after a mistake (2), which no other try mends.
loop() {
  local code child='' told=0
  echo $$ >"$PID"
  trap 'told=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null' TERM
  echo running >"$STATE"
  while true; do
    .venv/bin/python -u -m emu_jax train "$@" &
    child=$!
    code=0
    wait "$child" || code=$?
    # A signal to this script ends `wait` early; the run is still saving.
    while kill -0 "$child" 2>/dev/null; do
      code=0
      wait "$child" || code=$?
    done
    if ((code == 0)) && tail -n 5 "$LOG" | grep -q '^finished '; then
      echo ended >"$STATE"
      return
    elif ((told)); then
      echo stopped >"$STATE"
      return
    elif ((code == 2)); then
      echo mistaken >"$STATE"
      return 2
    fi
    echo "worker.sh: train ended with $code; again in ${RETRY_SECONDS:-20} s"
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
