#!/usr/bin/env bash
# Builds the documentation into build/site, strictly, in a small environment of its own (.venv-docs). Exit codes: 0 built,
# 2 something is wrong in the pages, 3 network or disk.
set -euo pipefail
cd "$(dirname "$0")/.."
export NO_MKDOCS_2_WARNING=1 # of its theme, which would end the log
unset PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX
. scripts/environment.sh
folder=.venv-docs
log=.cache/docs.log
mkdir -p .cache

fail() { # exit code, message
  tail -n 20 "$log" >&2
  printf 'error: %s\n' "$2" >&2
  exit "$1"
}

if [ "$(cat "$folder/.made-from" 2>/dev/null)" != "$(made_from requirements/docs.txt)" ]; then
  make_environment "$folder" requirements/docs.txt >"$log" 2>&1 || fail 3 "$folder could not be installed; check the network, then run it again"
  made_from requirements/docs.txt >"$folder/.made-from"
fi
.venv/bin/mmbert components reference build/reference >"$log" 2>&1 || fail 2 "the reference pages could not be made"
"$folder/bin/mkdocs" build --strict --site-dir build/site >"$log" 2>&1 || fail 2 "the documentation could not be built"
