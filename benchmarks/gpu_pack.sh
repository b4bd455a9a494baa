#!/usr/bin/env bash
# What benchmarks/gpu.py needs on a machine without a network: wheels and CIFAR-10, in parts that can be carried.
#
#   benchmarks/gpu_pack.sh pack [DATA_DIR]   here: fills .gpu_pack/{part-1,part-2,wheels}; DATA_DIR holds cifar-10-batches-py
#   benchmarks/gpu_pack.sh unpack            there: joins the parts into .gpu_pack/data, unpacks what is missing into .gpu_pack/site
#   benchmarks/gpu_pack.sh run [options]     there: python benchmarks/gpu.py with that data and those packages
#
# PYTHON names the interpreter (python3). Wheels are those of Python 3.12 on x86-64.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

# What torch, lightning, timm, torchmetrics, torchvision, scikit-learn, scipy and matplotlib do not bring along.
wheels=(rich markdown-it-py mdurl pygments jsonargparse docstring-parser typeshed-client importlib-resources
  lazy-loader pytest pluggy iniconfig tensorboard protobuf absl-py)

case "${1:-}" in
  pack)
    rm -rf .gpu_pack
    mkdir -p .gpu_pack/wheels
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
      --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
      -d .gpu_pack/wheels "${wheels[@]}"
    "$python" benchmarks/gpu_pack.py compress "${2:-data}" .gpu_pack
    du -sh .gpu_pack/*
    ;;
  unpack) "$python" benchmarks/gpu_pack.py unpack .gpu_pack ;;
  run) PYTHONUNBUFFERED=1 PYTHONPATH=".:.gpu_pack/site" "$python" benchmarks/gpu.py --data .gpu_pack/data "${@:2}" ;;
  *)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
