# What the scripts of this folder share; sourced, not run.
# shellcheck shell=bash

DRY_RUN=0

# Ends with one line that says what to do.
fail() {
  echo "error: $*" >&2
  exit 2
}

# Runs a command, or prints it as it would be typed.
run() {
  if ((DRY_RUN)); then
    local line='' word
    for word in "$@"; do
      line+=" $(quoted "$word")"
    done
    echo "${line# }"
  else
    "$@"
  fi
}

# A word with quotes where a shell needs them.
quoted() {
  if [[ $1 =~ ^[A-Za-z0-9_./:=,@+~%-]+$ ]]; then
    printf '%s' "$1"
  else
    printf "'%s'" "${1//\'/\'\\\'\'}"
  fi
}

# need VALUE FLAG EXAMPLE: a flag that has no default.
need() {
  [[ -n $1 ]] || fail "$2 is missing, as in $2=$3"
}

# The comment at the top of a script is its help.
show_help() {
  sed -n '2,/^$/s/^#[ ]\{0,1\}//p' "$1"
}
