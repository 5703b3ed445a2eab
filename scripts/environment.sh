# Sourced: a small environment of its own, made from a lock file.

# Python 3.11 and uv are taken from PATH; uv is fetched with pip where it is not there.
make_environment() { # folder, lock file
  local python uv
  python=$(command -v python3.11 || command -v python3) || {
    echo "Python 3.11 is needed and was not found on PATH" >&2
    return 2
  }
  uv=$(command -v uv || echo .uv/bin/uv)
  if ! command -v "$uv" >/dev/null; then
    PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --disable-pip-version-check --only-binary :all: --target .uv uv==0.13.9 ||
      return
  fi
  rm -rf "$1"
  "$uv" venv --quiet --python "$python" "$1" &&
    "$uv" pip install --quiet --python "$1/bin/python" --no-deps --require-hashes --compile-bytecode --requirement "$2"
}

# What an environment is made from: the files given, and the folder, which stands in the environment's files.
made_from() { # files...
  { git hash-object -- scripts/environment.sh "$@" && printf '%s\n' "$PWD"; } | git hash-object --stdin
}
