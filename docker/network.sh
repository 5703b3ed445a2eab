#!/bin/sh
# Runs a command of the build with the builder's own certificates and package sources, given as build secrets so that no
# layer and no history holds them (scripts/images.sh).
set -eu
if [ -s /run/secrets/ca ]; then
  export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca NODE_EXTRA_CA_CERTS=/run/secrets/ca
fi
if [ -s /run/secrets/sources ]; then
  set -a
  . /run/secrets/sources
  set +a
fi
exec "$@"
