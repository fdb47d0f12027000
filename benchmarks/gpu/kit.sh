#!/usr/bin/env bash
# What travels to a lent machine, made where there is a network:
#
#   benchmarks/gpu/kit.sh whl       wheels that the machine lacks, into .kit/whl (a few MB), and the tools, into .kit/tools
#   benchmarks/gpu/kit.sh ort DIR   onnxruntime-gpu for CPython 3.12, in parts, into DIR/000, DIR/001, ... and DIR/SHA256
#   benchmarks/gpu/kit.sh trt DIR   TensorRT 8.6 with a CPython 3.9 of its own, likewise
#   benchmarks/gpu/kit.sh room      MiB that an upload has beside the working tree
#
# An upload is the working tree and what it carries, 64 MiB in all: the parts are as large as that allows. The folder .kit
# is to be ignored: echo /.kit/ >> .git/info/exclude. SHARED is the folder with `parts` and `tensorrt86`.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
shared=${SHARED:-/work/shared/gpu}
cd "$root"

room() {
  local tree
  # A file that is tracked and not there (a sparse checkout) does not travel, and du fails on it.
  tree=$({ git ls-files -z --cached --others --exclude-standard | xargs -0 du -cb 2>/dev/null || true; } |
    awk '$2 == "total" {s += $1} END {print s}')
  echo $((62 - tree / 1048576))
}

fetch() { # for CPython $1: the packages that follow, into the folder $2
  local version=$1 folder=$2
  shift 2
  local platforms=()
  for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
  done
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$version" --implementation cp "${platforms[@]}" -d "$folder" "$@"
}

case "${1:-}" in
whl)
  rm -rf .kit/whl && mkdir -p .kit/whl .kit/tools
  # The machine has torch, transformers, tokenizers, safetensors, onnx, onnxscript, onnxruntime (CPU), pillow; its onnx-ir
  # 1.0.0 is too old for the export.
  fetch 3.12 .kit/whl diffusers==0.42.1 msgspec==0.22.0 onnx-ir==1.1.0
  cp "$shared/parts" .kit/tools/parts
  ls -l .kit/whl
  ;;
ort | trt)
  kit=$1 out=${2:?usage: kit.sh $1 DIR}
  mib=${PART_MIB:-$(room)}
  ((mib >= 8)) || { echo "kit.sh: the working tree leaves $mib MiB; take large files out of it (README.md)" >&2; exit 1; }
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  if [[ $kit == ort ]]; then
    fetch 3.12 "$work" onnxruntime-gpu
    mkdir "$work/site"
    python3 -m zipfile -e "$work"/*.whl "$work/site"
    rm "$work"/*.whl
    "$shared/parts" pack "$work/site" "$out" "$mib"
  else
    "$shared/tensorrt86" "$work/trt"
    fetch 3.9 "$work" msgspec pillow tokenizers
    for wheel in "$work"/*.whl; do python3 -m zipfile -e "$wheel" "$work/trt/site"; done
    "$work/trt/python" -c 'import msgspec, PIL, tokenizers, tensorrt'
    "$shared/parts" pack "$work/trt" "$out" "$mib"
  fi
  ;;
room) room ;;
*)
  sed -n '2,11p' "$0"
  exit 2
  ;;
esac
