#!/usr/bin/env bash
# Builds images with docker or podman: mmbert-orchestrator, -data, -train, -eval, or those named (`mlflow` is one more: the
# server for a cluster). BASE names their base image; MMBERT_IMAGE_PREFIX and MMBERT_IMAGE_TAG what they are called; BUILD_ARGS more build arguments ("NAME=value ...").
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/container-engine.sh
prefix=${MMBERT_IMAGE_PREFIX:-mmbert-}
tag=${MMBERT_IMAGE_TAG:-latest}
targets=("$@")
[ $# -gt 0 ] || targets=(orchestrator data train eval)

python=$(command -v python3.11 || command -v python3)
commit=$(git rev-parse HEAD)
[ -z "$(git status --porcelain -- mmbert components dags docker infra/local/mlflow_server.py requirements scripts/sbom.py package.json package-lock.json)" ] || commit+=-dirty
code=$("$python" -P -c 'import sys; sys.path.insert(0, "."); from components.code import code_digest; print(code_digest())')
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
more=()
for argument in ${BASE:+"BASE=$BASE"} ${BUILD_ARGS:-}; do more+=(--build-arg "$argument"); done

# What this machine needs to reach package sources, as secrets of the build: in no layer and no history.
secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT
chmod 700 "$secrets"
cat "${SSL_CERT_FILE:-/dev/null}" >"$secrets/ca"
for name in UV_DEFAULT_INDEX UV_INDEX PIP_INDEX_URL PIP_EXTRA_INDEX_URL NPM_CONFIG_REGISTRY HTTP_PROXY HTTPS_PROXY NO_PROXY; do
  value=${!name:-}
  [ -z "$value" ] || printf "%s='%s'\n" "$name" "${value//\'/\'\\\'\'}"
done >"$secrets/sources"

mkdir -p build/sbom .cache/images
for target in "${targets[@]}"; do
  case $target in
    orchestrator) lock=requirements/orchestrator.txt ;;
    mlflow) lock=requirements/mlflow-server.txt ;;
    *) lock=requirements/ml-image.txt ;;
  esac
  image=$prefix$target:$tag
  log=.cache/images/$target.log
  started=$SECONDS
  echo "building $image (its log: $log)"
  DOCKER_BUILDKIT=1 "$engine" build --file docker/Dockerfile --target "$target" --tag "$image" \
    --secret "id=ca,src=$secrets/ca" --secret "id=sources,src=$secrets/sources" \
    --build-arg "COMMIT=$commit" --build-arg "CODE=$code" --build-arg "VERSION=$version" \
    --build-arg "LOCK=sha256:$(sha256sum "$lock" | cut -d' ' -f1)" ${more[@]+"${more[@]}"} . >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    echo "error: $image could not be built; the lines above are the end of $log" >&2
    exit 3
  }
  "$engine" run --rm --entrypoint cat "$image" /usr/share/mmbert/sbom.cdx.json >"build/sbom/mmbert-$target.cdx.json"
  size=$("$engine" image inspect --format '{{.Size}}' "$image")
  echo "$image is ready: $((size / 1000000)) MB, $((SECONDS - started)) s"
done
