#!/usr/bin/env bash
# Puts MPICH 5 in DIR (default target/mpi) from the Python package `mpich`: DIR/bin/mpiexec and DIR/lib/libmpi_abi.so. 13 MB to load, 33 MB
# in all. No root, nothing to compile. Tests of several ranks use it, and so can training on CPUs: DIR/bin/mpiexec -n 2 llama-lite ...
set -euo pipefail
[[ $# -le 1 && ${1:-} != -* ]] || { echo "usage: scripts/mpi.sh [DIR]" >&2; exit 2; }
dir=${1:-$(dirname "$0")/../target/mpi}
python=${PYTHON:-python3}
package=mpich==5.0.2

fail() {
  echo "error: $1; hint: $2" >&2
  exit 1
}

[[ $(uname -s) == Linux ]] || fail "the package is for Linux here" "install MPICH 5 or newer and put its mpiexec on PATH"
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip" "install pip, or set PYTHON to a Python that has it"

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
if [[ "$(cat "$dir/package" 2>/dev/null)" != "$package" ]]; then
  rm -rf "$dir/package" "$dir/bin" "$dir/lib" "$dir/include"
  wheel=$(mktemp -d)
  trap 'rm -r "$wheel"' EXIT
  "$python" -m pip download --quiet --disable-pip-version-check --retries 1 --timeout 20 --no-deps --only-binary=:all: --dest "$wheel" "$package" \
    2>"$wheel/log" || fail "pip cannot load $package ($(tail -n 1 "$wheel/log"))" "it needs the Python package index"
  "$python" - "$wheel" "$dir" <<'P'
import pathlib, shutil, sys, zipfile
source, to = map(pathlib.Path, sys.argv[1:])
(wheel,) = source.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        folder, found, rest = name.partition(".data/data/")
        if rest and not rest.endswith("/"):
            path = to / rest
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as data, open(path, "wb") as file:
                shutil.copyfileobj(data, file)
            path.chmod(0o755 if rest.startswith("bin/") or ".so" in rest else 0o644)
# A wheel holds no links: the package has text files that say how libraries are loaded by their unversioned names.
for path in (to / "lib").glob("*.so"):
    versions = sorted((to / "lib").glob(path.name + ".*"))
    if path.stat().st_size < 1000 and versions:
        path.unlink()
        path.symlink_to(versions[0].name)
P
  # It works if two processes start.
  [[ "$("$dir/bin/mpiexec" -n 2 echo started | grep -c started)" == 2 ]] || fail "$dir/bin/mpiexec does not work" "remove $dir and try again"
  [[ -e $dir/lib/libmpi_abi.so.1 ]] || fail "$package has no libmpi_abi.so.1" "remove $dir and try again"
  echo "$package" >"$dir/package"
  # The next build looks again whether there is an MPI for the tests.
  touch "$(dirname "$0")/../build.rs"
fi
echo "# $package in $dir. To use it: export PATH=\"$dir/bin:\$PATH\""
