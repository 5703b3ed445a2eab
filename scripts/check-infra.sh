#!/usr/bin/env bash
# Checks infra/ without a cluster or a cloud, and fetches what it needs for that: a small environment (.venv-infra) from its
# lock file, kubectl and helm from npm, promtool out of Debian's package where there is apt (nothing is installed).
# AIRFLOW_CHART names a folder or archive of Airflow's chart, which is then templated. Exit codes: 0 all passed, 2 something
# is wrong in the files (or on this machine), 3 network or disk.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX
. scripts/environment.sh
folder=.venv-infra
log=.cache/check-infra.log
mkdir -p .cache

fail() { # exit code, message
  [ ! -s "$log" ] || tail -n 10 "$log" >&2
  printf 'error: %s\n' "$2" >&2
  exit "$1"
}

wanted() {
  made_from scripts/check-infra.sh requirements/infra.txt infra/tools/package-lock.json
}

fetch_tools() {
  # npm's own answer to whose package it is: it stands in the lock file with its hash. None of its code is run.
  (cd infra/tools && PATH="$PWD/../../$folder/bin:$PATH" npm ci --ignore-scripts --legacy-peer-deps --no-audit --no-fund --loglevel=error) &&
    "$folder/bin/python" - <<'PYTHON'
import pathlib, zipfile

target = pathlib.Path(".venv-infra/tools")
target.mkdir(exist_ok=True)
layer = next(pathlib.Path("infra/tools/node_modules/@aws-cdk").rglob("layer.zip"))
with zipfile.ZipFile(layer) as archive:
    for name in archive.namelist():
        program = pathlib.PurePosixPath(name).name
        if program in ("kubectl", "helm") and not name.endswith("/"):
            (target / program).write_bytes(archive.read(name))
            (target / program).chmod(0o755)
PYTHON
}

# promtool alone of Debian's package: installed, it would start a server.
fetch_promtool() {
  local unpacked
  command -v promtool >/dev/null && return
  [ -x "$folder/tools/promtool" ] && return
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
  unpacked=$(mktemp -d)
  (
    cd "$unpacked"
    apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }
    dpkg-deb -x prometheus_*.deb .
  ) && cp "$unpacked/usr/bin/promtool" "$folder/tools/promtool"
  rm -rf "$unpacked"
  [ -x "$folder/tools/promtool" ]
}

: >"$log"
command -v git >/dev/null || fail 2 "git is needed and was not found on PATH"
if [ "$(cat "$folder/.made-from" 2>/dev/null)" != "$(wanted)" ]; then
  echo "fetching what the checks need (0.3 GB)"
  make_environment "$folder" requirements/infra.txt >>"$log" 2>&1 || fail 3 "$folder could not be installed; check the network, then run it again"
  fetch_tools >>"$log" 2>&1 || fail 3 "npm could not fetch kubectl and helm; check the network, then run it again"
  wanted >"$folder/.made-from"
fi
fetch_promtool >>"$log" 2>&1 || true
exec "$folder/bin/python" -P -c 'import sys; sys.path.insert(0, "."); from infra.checks.__main__ import main; sys.exit(main())'
