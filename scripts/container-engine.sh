# Sourced: finds docker or podman, installs podman where neither is (Debian, as root), and sets `engine` (the command) and,
# for podman where it has few rights, CONTAINERS_CONF.
# shellcheck shell=bash

container_engine() {
  if [ -n "${MMBERT_ENGINE:-}" ]; then
    echo "$MMBERT_ENGINE"
  elif docker info >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1; then
    echo docker
  elif command -v podman >/dev/null; then
    echo podman
  else
    return 1
  fi
}

install_podman() {
  local as_root=()
  command -v apt-get >/dev/null || return 1
  [ "$(id -u)" = 0 ] || as_root=(sudo -n)
  echo "installing podman" >&2
  # shellcheck disable=SC2046 # one word a package
  ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive bash -c '
    apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@"' - \
    $(sed 's/#.*//' requirements/apt-containers.txt) >.cache/apt-containers.log 2>&1
}

mkdir -p .cache
engine=$(container_engine) || { install_podman && engine=podman; } || {
  echo "error: no docker answers, and podman is not there and could not be installed (as root: apt-get install podman buildah" \
    "runc debootstrap); install docker or podman, or name the command: MMBERT_ENGINE=..." >&2
  exit 3
}

# Root without CAP_SYS_RESOURCE (bit 24), as in a container: podman's defaults fail there.
if [ "$engine" = podman ] && [ -z "${CONTAINERS_CONF:-}" ] && [ "$(id -u)" = 0 ] &&
  [ $(((0x$(awk '/^CapEff/ {print $2}' /proc/self/status) >> 24) & 1)) = 0 ]; then
  export CONTAINERS_CONF=$PWD/docker/containers.conf
fi

# Sets DOCKER_HOST to a Docker API of podman's that ends with this script, where podman is the engine and none is set.
serve_docker_api() {
  [ "$engine" = podman ] && [ -z "${DOCKER_HOST:-}" ] || return 0
  api_folder=$(mktemp -d)
  export DOCKER_HOST=unix://$api_folder/podman.sock
  # Within its folder: where a container runs out of memory, podman's monitor leaves a file in the folder it was started in.
  (cd "$api_folder" && exec podman system service --time=0 "$DOCKER_HOST" 2>log) &
  api_process=$!
  trap 'kill "$api_process"; rm -rf "$api_folder"' EXIT
  until [ -S "$api_folder/podman.sock" ]; do
    kill -0 "$api_process" 2>/dev/null || {
      cat "$api_folder/log" >&2
      echo "error: podman's Docker API did not start" >&2
      exit 3
    }
    sleep 0.1
  done
}

# Where podman is the engine and no base image is named, one made of Debian's packages: no image registry is needed then.
default_base() {
  [ -z "${BASE:-}" ] && [ "$engine" = podman ] || return 0
  bash scripts/base-image.sh
  export BASE=mmbert-base:bookworm
}
