#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# tests/guests/kernels.sh [--cached] SERIES...: fetches the newest Debian cloud kernel of each series (5.10, 6.12, 7, …)
# that can be had and prints one line `SERIES DIRECTORY`; DIRECTORY holds `release`, `vmlinuz` and `modules.cpio`. With
# --cached the archive is only asked for kernels that are not in the cache. TCPTOP_GUEST_ARCH is their architecture, amd64
# or arm64.
#
# Archives forget: a package may be listed and gone. Then it is the next older one of the series, and `SERIES gone` where
# there is none. Everything else that goes wrong is named on standard error, and the exit status is then 1.
#
# archive.sh says where the packages come from. Everything is kept in TCPTOP_GUEST_CACHE.
set -euo pipefail
shopt -s nullglob inherit_errexit

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=tests/setup.sh
. "$here/../setup.sh"
# shellcheck source=tests/guests/archive.sh
. "$here/archive.sh"

# What the tests need beyond what a cloud kernel has built in: MODULES are loaded at boot, and the cryptography is
# there for the kernel to ask for when a socket gets kTLS keys.
MODULES='veth tls inet_diag tcp_diag udp_diag sch_netem sctp nbd'
MODULE_DIRECTORIES='kernel/crypto kernel/arch/x86/crypto kernel/arch/arm64/crypto kernel/lib/crypto'

# What has failed according to a log of apt-get's, other than that something is not there.
failures_in() { awk '/^Err:/ { what = $0; getline; if ($1 != 404 && $1 != 410) print what ": " $0 }' "$1"; }

# The releases (uname -r) of a series' cloud kernels in the archive and in the cache, the newest first.
known_releases() {
	{
		apt_private apt-cache pkgnames "linux-image-$1." | sed -n "s/^linux-image-\\(.*-cloud-$arch\\)\$/\\1/p"
		cached_releases "$1"
	} | sort -rVu
}

# Since 7.3 a kernel is spread over several packages, which the old name depends on.
kernel_packages() {
	local release=$1
	printf 'linux-image-%s\n' "$release"
	apt_private apt-cache depends --important "linux-image-$release" |
		awk -v release="$release" '$1 == "Depends:" && $2 ~ /^linux-/ &&
			substr($2, length($2) - length(release)) == "-" release { print $2 }' | sort -u
}

# unpack RELEASE TREE
unpack() {
	local release=$1 tree=$2 packages package
	mkdir -p "$tree/debs"
	mapfile -t packages < <(kernel_packages "$release")
	(cd "$tree/debs" && apt_private apt-get -q download "${packages[@]}") >"$cache/apt/download.log" 2>&1
	for package in "$tree"/debs/*.deb; do
		dpkg -x "$package" "$tree"
	done
	# Modules live in /lib or in /usr/lib; modprobe and depmod look into one of the two.
	[[ -d $tree/lib/modules ]] || ln -s usr/lib "$tree/lib"
	mkdir -p "$tree/usr/lib"
	[[ -d $tree/usr/lib/modules ]] || ln -s ../../lib/modules "$tree/usr/lib/modules"
	depmod -b "$tree" "$release"
}

# The files of a module and of everything it needs; nothing if it is built in or this kernel has none.
module_files() {
	local tree=$1 release=$2 module=$3
	modprobe -C /dev/null -d "$tree" -S "$release" --show-depends "$module" 2>/dev/null |
		awk '$1 == "insmod" { print $2 }' || true
}

# pack_modules TREE RELEASE ARCHIVE: the part of the module tree that the tests need, as a piece of an initramfs.
pack_modules() {
	local tree=$1 release=$2 archive=$3 from to module directory
	from=$tree/lib/modules/$release
	to=$tree/pack/usr/lib/modules/$release
	mkdir -p "$to"
	ln -s usr/lib "$tree/pack/lib"
	for module in $MODULES; do
		module_files "$tree" "$release" "$module"
	done | sort -u | sed "s#^.*/modules/$release/##" >"$tree/wanted"
	for directory in $MODULE_DIRECTORIES; do
		[[ ! -d $from/$directory ]] || (cd "$from" && find "$directory" -name '*.ko*') >>"$tree/wanted"
	done
	(cd "$from" && { cat "$tree/wanted"; ls modules.order modules.builtin*; } | cpio --quiet -pdm "$to")
	depmod -b "$tree/pack" "$release"
	printf '%s\n' "$MODULES" >"$tree/pack/usr/lib/modules/guest.modules"
	(cd "$tree/pack" && find usr | cpio --quiet -o -H newc -R 0:0) >"$archive"
}

# fetch RELEASE: into the cache, complete or not at all.
fetch() {
	local release=$1 tree kernel
	tree=$(mktemp -d "$cache/fetch.XXXXXX")
	say "fetching kernel $release"
	unpack "$release" "$tree"
	mkdir "$tree/done"
	for kernel in "$tree/boot/vmlinuz-$release" "$tree/lib/modules/$release/vmlinuz"; do
		[[ ! -f $kernel ]] || cp "$kernel" "$tree/done/vmlinuz"
	done
	[[ -e $tree/done/vmlinuz ]]
	pack_modules "$tree" "$release" "$tree/done/modules.cpio"
	printf '%s\n' "$release" >"$tree/done/release"
	printf '%s\n' "$arch" >"$tree/done/arch"
	recipe >"$tree/done/recipe"
	mkdir -p "$cache/kernels"
	rm -rf "${cache:?}/kernels/$release"
	mv "$tree/done" "$cache/kernels/$release"
	rm -rf "$tree"
}

# try_to_fetch RELEASE: prints nothing if it is in the cache now, `gone` if the archive has lost it, else `failed`.
try_to_fetch() {
	: >"$cache/apt/download.log"
	# As a command of its own, so that errors end it (an `if` around a function would switch that off).
	if "$BASH" "$0" --fetch "$1" >&2; then
		return
	fi
	if grep -q '^Err:' "$cache/apt/download.log" && [[ -z $(failures_in "$cache/apt/download.log") ]]; then
		say "linux-image-$1 is listed, but the archive does not have it any more"
		printf 'gone'
	else
		cat "$cache/apt/download.log" >&2
		say "cannot fetch the kernel package linux-image-$1"
		printf 'failed'
	fi
}

# What the cached files were made by: an edit of that makes them anew.
recipe() { { printf '%s\n' "$MODULES" "$MODULE_DIRECTORIES" && declare -f unpack module_files pack_modules fetch; } | cksum; }

# Those of a series whose files are as this script makes them, the newest first.
cached_releases() {
	local file directory
	for file in "$cache/kernels/$1".*/recipe; do
		directory=$(dirname "$file")
		[[ $(recipe) != "$(<"$file")" ]] || basename "$directory"
	done | sort -rV
}

# offer SERIES RELEASE: in the cache there is no older one of the series then.
offer() {
	local directory
	for directory in "$cache/kernels/$1".*; do
		[[ $directory == "$cache/kernels/$2" ]] || rm -rf "$directory"
	done
	printf '%s %s\n' "$1" "$cache/kernels/$2"
}

# The kernel of one series: the newest that is in the cache or can be fetched. Only an archive that has answered each
# question can be said to have none.
provide() {
	local series=$1 release result='' cached
	cached=" $(cached_releases "$series" | xargs) "
	for release in $(known_releases "$series"); do
		if [[ $cached != *" $release "* ]]; then
			# An archive that fails is not asked again.
			[[ $result != failed ]] || continue
			result=$(try_to_fetch "$release")
			[[ -z $result ]] || continue
		fi
		offer "$series" "$release"
		return
	done
	if [[ $result == failed || -n $(failures_in "$cache/apt/update.log") ]]; then
		say "no kernel of series $series could be had"
		failures_in "$cache/apt/update.log" >&2
		return 1
	fi
	say "no cloud kernel of series $series in $SUITES $SECURITY_SUITES"
	printf '%s gone\n' "$series"
}

main() {
	local series release wanted=() status=0
	for series in "$@"; do
		release=
		[[ $prefer_cache == no ]] || release=$(cached_releases "$series" | head -n 1)
		if [[ -n $release ]]; then
			offer "$series" "$release"
		else
			wanted+=("$series")
		fi
	done
	((${#wanted[@]})) || return 0
	if ! has apt-get || ! has dpkg; then
		die 'guest kernels are Debian packages, and this machine has no apt-get or dpkg' \
			'run the tests with --host-only here, and on Debian for the guests'
	fi
	write_apt_configuration
	update_lists
	for series in "${wanted[@]}"; do
		provide "$series" || status=1
	done
	return "$status"
}

prefer_cache=no
case ${1-} in
--fetch)
	fetch "$2"
	exit
	;;
--cached)
	prefer_cache=yes
	shift
	;;
esac
(($#)) || die 'usage: kernels.sh [--cached] SERIES...'
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
rm -rf "$cache"/fetch.*
main "$@"
