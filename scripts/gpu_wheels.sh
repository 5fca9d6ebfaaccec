#!/usr/bin/env bash
# Download the wheels that scripts/gpu_suite.sh requires in addition to torch, Triton and transformers: Composer,
# OmegaConf, datasets and their dependencies, and liger-kernel for comparison. All wheels are pure Python, except
# zstandard's, which is for CPython on Linux x86-64.
#
# usage, on a machine with pip and a network: scripts/gpu_wheels.sh FOLDER
#   PYTHON_VERSION  Python version of the machine with the GPU (default: 3.12)
set -euo pipefail

if [[ $# -ne 1 ]]; then
    echo "usage: scripts/gpu_wheels.sh FOLDER" >&2
    exit 2
fi

most_mib=40
packages=(
    "mosaicml>=0.32.1"
    # Direct and indirect dependencies of Composer, within its version limits.
    "mosaicml-cli<0.8" "gql>=3.4,<4" "graphql-core<3.3" "websockets<12" backoff "questionary<2.1"
    "prompt-toolkit<=3.0.36" wcwidth ruamel.yaml validators "coolname<3" py-cpuinfo tabulate "importlib-metadata<9" zipp
    "omegaconf>=2.4"
    "datasets>=4" "dill<0.4.2" "multiprocess<0.70.20"
    zstandard
    liger-kernel
)
platforms=()
for glibc in 2_28 2_27 2_17; do
    platforms+=(--platform "manylinux_${glibc}_x86_64")
done

mkdir -p "$1"
python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$1" \
    --python-version "${PYTHON_VERSION:-3.12}" --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 \
    "${packages[@]}"

mib=$(du --summarize --block-size=1M "$1" | cut -f1)
echo "$1: $(find "$1" -name '*.whl' | wc -l) wheels, $mib MiB"
if ((mib > most_mib)); then
    echo "$1: the wheels must have at most $most_mib MiB, got $mib MiB." >&2
    exit 1
fi
