#!/usr/bin/env bash
# llama-cpp.sh FOLDER PROGRAM ARGUMENTS...: runs llama-quantize, llama-bench or llama-server of Debian's llama.cpp, to compare with.
#
# It is unpacked into FOLDER once, with all that it needs, from the mirror that this Debian uses; nothing of the system is changed. Its programs look for
# their parts under /usr, so they run with FOLDER as their root, where FOLDER/models is /models. Without root that takes user namespaces.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
program=$2
shift 2

unpack() {
    local mirror work=$folder/.unpacking
    mirror=$(awk '/^URIs:/ { print $2; exit } /^deb / { for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) { print $i; exit } }' \
        /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null || true)
    if [ -z "$mirror" ] || ! command -v apt-get dpkg >/dev/null; then
        echo "llama-cpp.sh: llama.cpp comes from Debian's package of it, and this is no Debian with a mirror in its apt sources" >&2
        exit 3
    fi
    rm -rf "$work"
    mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/parts" "$work/root" "$folder/models"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/sources.list"
    : >"$work/status"
    local options=(-o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts="$work/parts" -o Dir::State::lists="$work/lists"
        -o Dir::State::status="$work/status" -o Dir::Cache::archives="$work/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
        -o APT::Install-Recommends=false -o Debug::NoLocking=1)
    apt-get "${options[@]}" --quiet=2 update >&2
    # Without its backends for GPUs, which bring gigabytes.
    apt-get "${options[@]}" --quiet=2 --yes --download-only install llama.cpp libggml0-backend-hip- libggml0-backend-vulkan- >/dev/null
    for package in "$work"/archives/*.deb; do dpkg -x "$package" "$work/root"; done
    for name in bin sbin lib lib64; do
        [ -e "$work/root/$name" ] || [ ! -d "$work/root/usr/$name" ] || ln -s "usr/$name" "$work/root/$name"
    done
    mkdir -p "$work/root/models"
    mv "$work/root" "$folder/root"
    rm -rf "$work"
}

[ -x "$folder/root/usr/bin/llama-bench" ] || unpack
enter=(chroot "$folder/root")
[ "$(id -u)" = 0 ] || enter=(unshare --map-root-user --root="$folder/root")
exec "${enter[@]}" "/usr/bin/$program" "$@"
