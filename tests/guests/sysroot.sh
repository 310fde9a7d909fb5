#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# tests/guests/sysroot.sh: unpacks what programs for arm64 guests are linked with, and what these guests run, and prints
# the directory. The packages are those of this machine's own Debian release, as archive.sh has them.
set -euo pipefail
shopt -s nullglob

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=tests/setup.sh
. "$here/../setup.sh"
export TCPTOP_GUEST_ARCH=arm64
# shellcheck source=tests/guests/archive.sh
. "$here/archive.sh"

PROGRAMS='busybox-static dash iproute2 kmod util-linux'
LIBRARIES='libbpf1 libbsd0 libc6 libcap-ng0 libcap2 libcom-err2 libdb5.3 libelf1 libgcc-s1 libgssapi-krb5-2 libk5crypto3
	libkeyutils1 libkmod2 libkrb5-3 libkrb5support0 liblzma5 libmd0 libmnl0 libpcre2-8-0 libselinux1 libssl3 libtirpc3
	libxtables12 libzstd1 zlib1g'
TO_LINK_WITH='libelf-dev zlib1g-dev'

unpack_all() {
	local tree release package
	tree=$(mktemp -d "$cache/sysroot.XXXXXX")
	release=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
	[[ -n $release ]] || die '/etc/os-release names no release of Debian to take arm64 packages from'
	mkdir "$tree/debs" "$tree/done"
	# shellcheck disable=SC2086  # lists of words
	(cd "$tree/debs" && apt_private apt-get -q -t "$release" download $PROGRAMS $LIBRARIES $TO_LINK_WITH) >&2
	for package in "$tree"/debs/*.deb; do
		dpkg -x "$package" "$tree/done"
	done
	recipe >"$tree/done/recipe"
	rm -rf "${cache:?}/sysroot"
	mv "$tree/done" "$cache/sysroot"
	rm -rf "$tree"
}

recipe() { { printf '%s\n' "$PROGRAMS" "$LIBRARIES" "$TO_LINK_WITH" && cat /etc/os-release; } | cksum; }

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [[ ! -e $cache/sysroot/recipe || $(<"$cache/sysroot/recipe") != "$(recipe)" ]]; then
	say 'fetching packages for arm64 guests'
	write_apt_configuration
	update_lists
	unpack_all
fi
printf '%s\n' "$cache/sysroot"
