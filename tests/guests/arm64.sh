#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# tests/guests/arm64.sh ARCHIVE TARGET-DIRECTORY: builds the live tests and the example for arm64, and packs what arm64
# guests run, see initramfs.sh. Nothing of it is installed on this machine but a compiler: see sysroot.sh.
set -euo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=tests/setup.sh
. "$here/../setup.sh"

archive=$1
export CARGO_TARGET_DIR=$2
target=aarch64-unknown-linux-gnu
sysroot=$("$here/sysroot.sh")
libraries=$sysroot/usr/lib/aarch64-linux-gnu

export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar
export CFLAGS_aarch64_unknown_linux_gnu="-I$sysroot/usr/include -I$sysroot/usr/include/aarch64-linux-gnu"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-L native=$libraries \
	-C link-arg=-Wl,-rpath-link=$libraries:$sysroot/lib/aarch64-linux-gnu"
export PKG_CONFIG_ALLOW_CROSS=1 PKG_CONFIG_SYSROOT_DIR=$sysroot PKG_CONFIG_LIBDIR=$libraries/pkgconfig
live=$(built_executable test --target "$target" --no-run --test live)
cli=$(built_executable build --target "$target" --example tcptop)
TCPTOP_GUEST_SYSROOT=$sysroot "$here/initramfs.sh" "$archive" "$live" "$cli"
