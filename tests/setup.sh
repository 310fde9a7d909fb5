# shellcheck shell=bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# What examples/run and tests/run share: finding out which tools this machine lacks, getting them from its package
# manager, and being root where that is needed. To be sourced; it defines functions and extends PATH.

# Administrators' tools are not on everybody's PATH, and rustup's directory is not on the PATH of services.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin

BUILD_TOOLS='clang make cc pkg-config libelf zlib linux-headers'
TEST_TOOLS='qemu busybox cpio kmod iproute2 clang-format shellcheck strip git'
# To compile for arm64 machines, and to emulate them.
export ARM64_TOOLS='aarch64-gcc qemu-arm64'

say() { printf 'tcptop: %s\n' "$*" >&2; }

die() {
	printf 'tcptop: %s\n' "$@" >&2
	exit 1
}

has() { command -v "$1" >/dev/null; }

# Runs a command as root: directly if we are root, else through sudo.
as_root() {
	if ((EUID == 0)); then
		"$@"
	elif has sudo; then
		sudo -- "$@"
	else
		die "needs root: $*" 'run this as root, or install sudo'
	fi
}

# The same in place of this shell, so that signals reach the command.
exec_as_root() {
	((EUID == 0)) && exec "$@"
	has sudo || die "needs root: $*" 'run this as root, or install sudo'
	exec sudo -- "$@"
}

# Whether this machine has the tool. Asks for what will be used, not for a package: tools also come from elsewhere.
has_tool() {
	case $1 in
	libelf) pkg-config --exists libelf 2>/dev/null ;;
	zlib) pkg-config --exists zlib 2>/dev/null ;;
	linux-headers) [[ -e /usr/include/linux/bpf.h ]] ;;
	# The linker's start files come in a package of their own.
	cc) has cc && [[ -e /usr/include/stdio.h ]] ;;
	qemu) has qemu-system-x86_64 ;;
	qemu-arm64) has qemu-system-aarch64 ;;
	aarch64-gcc) has aarch64-linux-gnu-gcc && [[ -e /usr/aarch64-linux-gnu/include/stdio.h ]] ;;
	kmod) has modprobe && has depmod ;;
	iproute2) has ip && has ss && has tc ;;
	postgres) has psql && compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null ;;
	*) has "$1" ;;
	esac
}

missing_tools() {
	local tool
	for tool in "$@"; do
		has_tool "$tool" || printf '%s\n' "$tool"
	done
}

# What each tool is called in the package managers we know. A comma joins packages that belong together.
package_names() {
	cat <<-'TABLE'
		tool          apt-get            dnf                    pacman             zypper             apk
		clang         clang              clang                  clang              clang              clang
		clang-13      clang-13           clang13                clang13            clang13            clang13
		clang-19      clang-19           clang19                clang19            clang19            clang19
		make          make               make                   make               make               make
		cc            gcc,libc6-dev      gcc,glibc-devel        gcc                gcc,glibc-devel    gcc,musl-dev
		pkg-config    pkg-config         pkgconf-pkg-config     pkgconf            pkgconf-pkg-config pkgconf
		libelf        libelf-dev         elfutils-libelf-devel  libelf             libelf-devel       elfutils-dev
		zlib          zlib1g-dev         zlib-devel             zlib               zlib-devel         zlib-dev
		linux-headers linux-libc-dev     kernel-headers         linux-api-headers  linux-glibc-devel  linux-headers
		qemu          qemu-system-x86    qemu-system-x86-core   qemu-system-x86    qemu-x86           qemu-system-x86_64
		qemu-arm64    qemu-system-arm    qemu-system-aarch64-core qemu-system-aarch64 qemu-arm         qemu-system-aarch64
		aarch64-gcc   gcc-aarch64-linux-gnu,libc6-dev-arm64-cross gcc-aarch64-linux-gnu aarch64-linux-gnu-gcc cross-aarch64-gcc13 gcc-aarch64-none-elf
		busybox       busybox-static     busybox                busybox            busybox-static     busybox-static
		cpio          cpio               cpio                   cpio               cpio               cpio
		kmod          kmod               kmod                   kmod               kmod               kmod
		iproute2      iproute2           iproute,iproute-tc     iproute2           iproute2           iproute2
		clang-format  clang-format       clang-tools-extra      clang              clang-tools        clang-extra-tools
		shellcheck    shellcheck         ShellCheck             shellcheck         ShellCheck         shellcheck
		strip         binutils           binutils               binutils           binutils           binutils
		git           git                git                    git                git                git
		debootstrap   debootstrap        debootstrap            debootstrap        debootstrap        debootstrap
		python3       python3            python3                python             python3            python3
		curl          curl               curl                   curl               curl               curl
		nginx         nginx-light        nginx                  nginx              nginx              nginx
		redis-server  redis-server       redis                  redis              redis              redis
		redis-benchmark redis-tools      redis                  redis              redis              redis
		iperf3        iperf3             iperf3                 iperf3             iperf              iperf3
		dig           bind9-dnsutils     bind-utils             bind               bind-utils         bind-tools
		dnsmasq       dnsmasq-base       dnsmasq                dnsmasq            dnsmasq            dnsmasq
		postgres      postgresql         postgresql-server      postgresql         postgresql-server  postgresql
	TABLE
}

package_manager() {
	local manager
	for manager in apt-get dnf pacman zypper apk; do
		has "$manager" && printf '%s\n' "$manager" && return
	done
	return 1
}

# packages_for MANAGER TOOL...: what to ask that package manager for.
packages_for() {
	local manager=$1
	shift
	package_names | awk -v manager="$manager" -v wanted="$*" '
		BEGIN { n = split(wanted, names, " "); for (i = 1; i <= n; i++) want[names[i]] = 1 }
		NR == 1 { for (i = 2; i <= NF; i++) if ($i == manager) column = i; next }
		$1 in want { gsub(",", "\n", $column); print $column }'
}

install_packages() {
	local manager=$1
	shift
	case $manager in
	apt-get)
		# A dead third-party repository must not stop us: whether the packages came is what counts.
		as_root apt-get -qq update || say 'some package lists could not be fetched'
		as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 \
			--no-install-recommends install "$@"
		;;
	dnf) as_root dnf -q -y install "$@" ;;
	pacman) as_root pacman -Sy --needed --noconfirm "$@" ;;
	zypper) as_root zypper -q --non-interactive install --no-recommends "$@" ;;
	apk) as_root apk add -q "$@" ;;
	esac
}

# Installs what is missing of the given tools; does nothing, quickly, when nothing is.
require_tools() {
	local missing packages manager
	mapfile -t missing < <(missing_tools "$@")
	((${#missing[@]})) || return 0
	manager=$(package_manager) ||
		die "missing on this machine: ${missing[*]}" \
			'and there is no package manager here that this script knows: please install them'
	mapfile -t packages < <(packages_for "$manager" "${missing[@]}")
	say "installing with $manager: ${packages[*]}"
	# Standard output belongs to the program that we are about to run, and errors do not come this way.
	install_packages "$manager" "${packages[@]}" </dev/null >/dev/null ||
		say "$manager failed"
	mapfile -t missing < <(missing_tools "$@")
	((${#missing[@]} == 0)) ||
		die "still missing: ${missing[*]}" "please install: $(packages_for "$manager" "${missing[@]}" | xargs)"
}

require_rust() {
	has cargo || die 'there is no Rust toolchain here (no cargo)' \
		'get one from https://rustup.rs, and if you use sudo: run this without it, it asks for root where it must'
}

# require_rust_component COMMAND COMPONENT: a cargo subcommand that rustup ships apart.
require_rust_component() {
	cargo "$1" --version >/dev/null 2>&1 && return
	has rustup || die "cargo $1 is missing" "please install your distribution's package of it"
	say "installing with rustup: $2"
	rustup component add "$2" >&2 || die "rustup could not install $2"
}

# require_rust_target TARGET: the standard library for it.
require_rust_target() {
	! rustc --print target-libdir --target "$1" 2>/dev/null | xargs test -d || return 0
	has rustup || die "there is no standard library of Rust for $1" "please install your distribution's package of it"
	rustup target add "$1" >&2 || die "rustup could not install $1"
}

require_build_tools() {
	# shellcheck disable=SC2086  # a list of words
	require_tools $BUILD_TOOLS
	require_rust
}

require_test_tools() {
	# shellcheck disable=SC2086  # lists of words
	require_tools $BUILD_TOOLS $TEST_TOOLS
	require_rust
	require_rust_component fmt rustfmt
	require_rust_component clippy clippy
}

# built_executable CARGO-ARGUMENTS...: lets cargo build quietly and prints the path of the one executable that comes
# out. Cargo names the path itself, so every way of moving the target directory works.
built_executable() {
	local path
	path=$(cargo "$@" --quiet --locked --message-format=json-render-diagnostics |
		sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1) || return
	[[ -n $path ]] || die "cargo $* made no executable"
	printf '%s\n' "$path"
}
