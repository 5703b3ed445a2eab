#!/usr/bin/env bash
# Makes the base image `mmbert-base` from Debian's packages, for machines that reach no image registry. Needs root.
# MMBERT_DEBIAN_MIRROR names another mirror than the machine's own.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/container-engine.sh
image=mmbert-base:bookworm
# Depends on what the packages depend on; debootstrap does not look for them itself.
packages=ca-certificates,python3.11-minimal,python3-distutils,python3.11-venv

made_from=$(git hash-object scripts/base-image.sh)
if [ "$("$engine" image inspect --format '{{index .Config.Labels "mmbert.made-from"}}' "$image" 2>/dev/null)" = "$made_from" ]; then
  exit 0
fi
command -v debootstrap >/dev/null || {
  echo "error: debootstrap is not there; as root: apt-get install debootstrap" >&2
  exit 3
}
own=$(sed -nE '/^#/d; s|.*(https?://[^ ]+).*|\1|p' /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
mirror=${MMBERT_DEBIAN_MIRROR:-${own%%$'\n'*}}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "making the base image (a minute)"
# shellcheck disable=SC2086 # nothing where the machine has no mirror of its own: debootstrap's default then
debootstrap --variant=minbase --include="$packages" bookworm "$folder/root" $mirror >.cache/debootstrap.log 2>&1 || {
  tail -n 5 .cache/debootstrap.log "$folder/root/debootstrap/debootstrap.log" >&2
  echo "error: the base image could not be made; check the network, or name a mirror: MMBERT_DEBIAN_MIRROR=..." >&2
  exit 3
}
# A mirror's login is not the image's.
sed -i 's#//[^@/ ]*@#//#' "$folder/root/etc/apt/sources.list"
rm -rf "$folder"/root/var/log/* "$folder"/root/debootstrap "$folder"/root/var/cache/apt/* "$folder"/root/var/lib/apt/lists/* "$folder"/root/usr/share/{doc,man,locale,info}/*
tar -C "$folder/root" -c . | "$engine" import --change "ENV PATH=/usr/local/bin:/usr/bin:/bin" \
  --change "LABEL mmbert.made-from=$made_from" - "$image" >/dev/null
echo "$image is ready"
