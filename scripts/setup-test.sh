#!/usr/bin/env bash
# What only tests need: environments with older versions of transformers (exit code 3 where the network fails), and Debian
# packages. Where the latter are not possible it says so and leaves a note in .cache/tests-not-run, which the test session
# repeats; the tests that need the browser are then not run.
set -euo pipefail
cd "$(dirname "$0")/.."
note=.cache/tests-not-run
mkdir -p .cache

browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null

# What of the list is not installed; nothing where there is no dpkg to ask.
missing() {
  command -v dpkg-query >/dev/null || return 0
  sed 's/#.*//' requirements/apt-test.txt | while read -r package; do
    [ -z "$package" ] || dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
  done
}

install() { # packages...
  local as_root=()
  command -v apt-get >/dev/null || return 1
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || return 1
    as_root=(sudo -n)
  fi
  echo "installing for the tests: $*"
  ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive bash -c '
    apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@"' - "$@" >.cache/apt.log 2>&1 && return
  tail -n 5 .cache/apt.log >&2
  return 1
}

# An environment with these few packages of its own, which borrows torch and the rest from .venv: after its own, so that
# its versions count.
borrowing_environment() { # folder, lock file
  local stamp uv
  stamp=$({ git hash-object -- scripts/setup-test.sh "$2" && printf '%s\n' "$PWD"; } | git hash-object --stdin)
  [ "$(cat "$1/.made-from" 2>/dev/null)" != "$stamp" ] || return 0
  uv=$(command -v uv || echo .uv/bin/uv)
  [ -x "$uv" ] || python3 -m pip install --quiet --disable-pip-version-check --only-binary :all: --target .uv uv
  rm -rf "$1"
  "$uv" venv --quiet --python .venv/bin/python "$1" &&
    "$uv" pip install --quiet --python "$1/bin/python" --no-deps --require-hashes --compile-bytecode --requirement "$2" &&
    .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
      >"$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth" || return
  printf '%s\n' "$stamp" >"$1/.made-from"
}

for version in 4.48 4.57; do
  borrowing_environment ".venv-transformers-$version" "requirements/transformers-$version.txt" || {
    printf 'error: .venv-transformers-%s could not be installed; check the network, then run it again\n' "$version" >&2
    exit 3
  }
done

packages=$(missing)
# shellcheck disable=SC2086 # one word a package
if [ -n "$packages" ]; then install $packages || true; fi

if browser; then
  rm -f "$note"
else
  echo "There is no browser: the tests that open the report in one do NOT RUN. Install chromium (Debian: as root," \
    "apt-get install $(sed 's/#.*//' requirements/apt-test.txt | xargs)) and run make test again." >"$note"
  printf '\n  !!  %s\n\n' "$(cat "$note")" >&2
fi
