#!/usr/bin/env bash
# Installs the Debian packages that only tests need. Where that is not possible it says so and leaves a note in
# .cache/tests-not-run, which the test session repeats; the tests that need the browser are then not run.
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
