#!/usr/bin/env bash
# Puts together a CUDA 13.0 compiler in DIR from the Python packages that NVIDIA publishes: 100 MB to load, 270 MB in all. No root, no GPU.
# Enough to build with `--features cuda`; running on a GPU takes a driver and NVIDIA's cuBLAS and cuRAND on that machine.
# --cudnn adds the headers that the feature cudnn is built with: 370 MB more to load, of which 4 MB stay.
set -euo pipefail
cudnn=
[[ ${1:-} != --cudnn ]] || { cudnn=1; shift; }
[[ $# == 1 && $1 != -* ]] || { echo "usage: scripts/cuda_toolkit.sh [--cudnn] DIR" >&2; exit 2; }
dir=$1
python=${PYTHON:-python3}
export PIP_ROOT_USER_ACTION=ignore
# Compiler, its headers, its back end, headers and static library of the runtime, C++ headers: all of one release.
packages=(
  nvidia-cuda-nvcc==13.0.88
  nvidia-cuda-crt==13.0.88
  nvidia-nvvm==13.0.88
  nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85
)

fail() {
  echo "error: $1" >&2
  echo "hint: $2" >&2
  exit 1
}

[[ $(uname -s) == Linux ]] || fail "the packages are for Linux" "install NVIDIA's toolkit and put its nvcc on PATH"
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip" "install pip, or set PYTHON to a Python that has it"
command -v g++ >/dev/null || fail "nvcc needs a C++ compiler, and there is no g++" "install g++ (up to version 15)"

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
home=$dir/nvidia/cu13
if [[ "$(cat "$dir/packages" 2>/dev/null)" != "${packages[*]}" ]]; then
  rm -rf "$dir/nvidia" "$dir"/nvidia_*.dist-info "$dir/packages" "$dir/headers"
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary=:all: --target "$dir" "${packages[@]}" ||
    fail "pip could not install the packages" "it needs the Python package index, and about 300 MB in $dir"
  # Where nvcc looks for libraries.
  ln -sfn lib "$home/lib64"
  echo "${packages[*]}" >"$dir/packages"
fi

check=$(mktemp -d)
trap 'rm -r "$check"' EXIT
headers="nvidia-cudnn-cu13==9.19.0.56 nvidia-cudnn-frontend==1.18.0"
if [[ -n $cudnn && "$(cat "$dir/headers" 2>/dev/null)" != "$headers" ]]; then
  # shellcheck disable=SC2086
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$check" $headers ||
    fail "pip could not load cuDNN's headers" "it needs the Python package index, and 400 MB where temporary files are"
  "$python" - "$check" "$home/include" <<'P'
import pathlib, shutil, sys, zipfile
source, to = map(pathlib.Path, sys.argv[1:])
for wheel in source.glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            before, found, rest = name.partition("include/")
            if found and rest and not rest.endswith("/"):
                path = to / rest
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as data, open(path, "wb") as file:
                    shutil.copyfileobj(data, file)
P
  rm -f "$check"/*.whl
  echo "$headers" >"$dir/headers"
fi

# It works if it compiles.
echo '#include <cuda_bf16.h>
__global__ void twice(__nv_bfloat16 *x) { x[threadIdx.x] += x[threadIdx.x]; }' >"$check/twice.cu"
"$home/bin/nvcc" --cubin -arch=sm_80 -o "$check/twice.cubin" "$check/twice.cu" ||
  fail "the compiler in $home does not work" "remove $dir and try again; its g++ may be too new"

cat <<END
# CUDA $("$home/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p') in $home. To build with it:
export PATH="$home/bin:\$PATH"
cargo build --release --features cuda${cudnn:+,cudnn}
END
