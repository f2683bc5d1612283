#!/usr/bin/env bash
# Generates the Python stubs beside their .proto files. Called by `make generate`, which brings the pinned generator.
# grpcio-tools 1.76 writes code that every protobuf from 6.31.1 on accepts (newer ones refuse older runtimes at import).
set -euo pipefail
cd "$(dirname "$0")"
python="${GENERATOR_PYTHON:?set by the Makefile: a Python with grpcio-tools 1.76}"
"$python" -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. $(find moefleet -name '*.proto' | sort)
