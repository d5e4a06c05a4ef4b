# Functions shared by the scripts in this folder; to be sourced.
# shellcheck shell=bash

DRY_RUN=0

# Exit with one line that says what to do.
fail() {
  echo "error: $*" >&2
  exit 2
}

# Run a command, or print it with --dry-run.
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

# Print a word with quotes where a shell needs them.
quoted() {
  if [[ $1 =~ ^[A-Za-z0-9_./:=,@+~%-]+$ ]]; then
    printf '%s' "$1"
  else
    printf "'%s'" "${1//\'/\'\\\'\'}"
  fi
}

# need VALUE FLAG EXAMPLE: exit unless a required flag has a value.
need() {
  [[ -n $1 ]] || fail "$2 is missing, as in $2=$3"
}

# Print the comment at the top of a script, which is its help.
show_help() {
  sed -n '2,/^$/s/^#[ ]\{0,1\}//p' "$1"
}
