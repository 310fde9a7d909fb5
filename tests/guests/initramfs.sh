#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# tests/guests/initramfs.sh ARCHIVE LIVE-TESTS [TCPTOP]: packs what every guest runs, whatever its kernel, into a cpio
# archive: the init script, the live tests, the example program, busybox, this machine's sh, ip, ss, tc, setpriv, unshare
# and kmod, and the shared libraries of all of these. Not compressed: an emulated processor unpacks slowly.
# TCPTOP_GUEST_SYSROOT is a directory of arm64 programs and libraries, which then take the place of this machine's.
set -euo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=tests/setup.sh
. "$here/../setup.sh"

sysroot=${TCPTOP_GUEST_SYSROOT:-}
strip=${sysroot:+aarch64-linux-gnu-}strip

# The file of a program of the guest.
program() {
	local place
	[[ -n $sysroot ]] || { command -v "$1" && return; }
	for place in "$sysroot"/{usr/bin,bin,usr/sbin,sbin}/"$1"; do
		[[ ! -e $place ]] || { printf '%s\n' "$place" && return; }
	done
	die "there is no $1 in ${sysroot:-this machine}"
}

# The shared libraries of a file, at the paths where the loader looks for them. A static program has none, and ldd says so
# with an error. What is of another architecture cannot be asked.
libraries() {
	if [[ -z $sysroot ]]; then
		{ ldd "$1" 2>/dev/null || true; } | sed -n 's#^[^/]*\(/[^ ]*\) (0x.*#\1#p'
		return
	fi
	readelf -dl "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p; s#.*program interpreter: /lib/\(.*\)\]#\1#p' |
		while read -r name; do
			for place in /lib /lib/aarch64-linux-gnu /usr/lib/aarch64-linux-gnu; do
				[[ ! -e $sysroot$place/$name ]] || printf '%s\n' "$place/$name"
			done
		done
}

# install_program FILE DESTINATION: with its shared libraries, and theirs.
install_program() {
	local library
	install -D -m 755 "$1" "$tree$2"
	libraries "$1" | while read -r library; do
		[[ -e $tree$library ]] || install_program "$sysroot$library" "$library"
	done
}

# Debug information is most of a test binary and of no use in the guest; symbols stay, for backtraces.
install_stripped() {
	"$strip" --strip-debug -o "$tree.stripped" "$1"
	install_program "$tree.stripped" "$2"
	rm "$tree.stripped"
}

make_directories() {
	local name
	mkdir -p "$tree"/{dev,etc,proc,root,run,sys,tmp,tests,var,usr/bin,usr/sbin,usr/lib,usr/lib64}
	for name in bin sbin lib lib64; do
		ln -s "usr/$name" "$tree/$name"
	done
	ln -s /run "$tree/var/run"
}

install_host_tools() {
	local tool
	for tool in ip ss tc setpriv unshare; do
		install_program "$(program "$tool")" "/usr/bin/$tool"
	done
	# Not busybox as the shell: Debian's would take its own ip and modprobe instead of the real ones.
	install_program "$(if [[ -n $sysroot ]]; then program dash; else readlink -f /bin/sh; fi)" /usr/bin/sh
	# The kernel itself calls /sbin/modprobe, for instance for the ciphers of kTLS.
	install_program "$(if [[ -n $sysroot ]]; then program kmod; else readlink -f "$(command -v modprobe)"; fi)" /usr/sbin/kmod
	for tool in modprobe modinfo insmod lsmod rmmod; do
		ln -s kmod "$tree/usr/sbin/$tool"
	done
}

install_busybox() {
	local applet
	install_program "$(program busybox)" /usr/bin/busybox
	for applet in $(busybox --list); do
		[[ -e $tree/usr/bin/$applet || -e $tree/usr/sbin/$applet ]] || ln -s busybox "$tree/usr/bin/$applet"
	done
}

write_settings() {
	printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'nobody:x:65534:65534:nobody:/:/bin/sh' >"$tree/etc/passwd"
	printf '%s\n' 'root:x:0:' 'nogroup:x:65534:' >"$tree/etc/group"
	printf '%s\n' '127.0.0.1 localhost guest' '::1 localhost guest' >"$tree/etc/hosts"
}

archive=$1
live=$2
cli=${3:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree

make_directories
install_host_tools
install_busybox
install_stripped "$live" /tests/live
[[ -z $cli ]] || install_stripped "$cli" /usr/bin/tcptop
install -m 755 "$here/init" "$tree/init"
write_settings
(cd "$tree" && find . | cpio --quiet -o -H newc -R 0:0) >"$archive"
