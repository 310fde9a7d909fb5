# shellcheck shell=bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Packages of Debian for the guests, from the mirror that this machine's apt uses, read through an apt configuration of our
# own: the machine's package lists and settings stay as they are, and nothing is installed. On a machine whose apt knows no
# Debian archive, TCPTOP_DEBIAN_MIRROR names one. To be sourced, after tests/setup.sh.

arch=${TCPTOP_GUEST_ARCH:-amd64}
cache=${TCPTOP_GUEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/tcptop/guests}
[[ $arch == amd64 ]] || cache+=/$arch

# A series moves between suites (to -security with an update, to the next stable release, out of the archive), so all
# of them are read and the newest kernel wins.
SUITES='bullseye bookworm trixie trixie-updates bookworm-backports trixie-backports sid'
SECURITY_SUITES='bullseye-security bookworm-security trixie-security'

# The Debian archives of this machine's own configuration: `URI SUITE` of everything that looks like one.
machine_archives() {
	# shellcheck disable=SC2016  # apt-get expands these
	apt-get indextargets 'Created-By: Packages' --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 2>/dev/null |
		awk '$3 == "main" && $2 ~ /^(bullseye|bookworm|trixie|forky|sid|(old)*stable|testing|unstable)(-|$)/ {
			sub("/$", "", $1); print $1, $2 }'
}

main_mirrors() {
	if [[ -n ${TCPTOP_DEBIAN_MIRROR:-} ]]; then
		printf '%s\n' "${TCPTOP_DEBIAN_MIRROR%/}"
	else
		machine_archives | awk '$2 !~ /-security$/ { print $1 }' | sort -u
	fi
}

# Mirrors carry the security archive beside the main one; it may also be configured on its own.
security_mirrors() {
	{
		main_mirrors | sed 's/$/-security/'
		[[ -n ${TCPTOP_DEBIAN_MIRROR:-} ]] || machine_archives | awk '$2 ~ /-security$/ { print $1 }'
	} | sort -u
}

# source_lines MIRRORS-COMMAND SUITE...
source_lines() {
	local mirrors=$1 uri suite keyring options="arch=$arch targets=Packages"
	shift
	for keyring in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do
		[[ -e $keyring ]] && options+=" signed-by=$keyring" && break
	done
	"$mirrors" | while read -r uri; do
		for suite in "$@"; do
			printf 'deb [%s] %s %s main\n' "$options" "$uri" "$suite"
		done
	done
}

write_apt_configuration() {
	mkdir -p "$cache/apt/state/lists/partial" "$cache/apt/cache/archives/partial"
	# shellcheck disable=SC2086  # lists of words
	{
		source_lines main_mirrors $SUITES
		source_lines security_mirrors $SECURITY_SUITES
	} >"$cache/apt/sources.list"
	[[ -s $cache/apt/sources.list ]] ||
		die 'apt on this machine knows no Debian archive to take guest kernels from' \
			'name one: TCPTOP_DEBIAN_MIRROR=http://…/debian (and install debian-archive-keyring)'
	# Some machines switch apt's binary caches off, and then every question takes seconds.
	# An archive's signature counts, its date does not: suites that are no longer updated have expired ones.
	# #clear: the machine's own hooks after an update are not ours to run.
	cat >"$cache/apt/apt.conf" <<-CONF
		Dir::State "$cache/apt/state";
		Dir::State::status "/dev/null";
		Dir::Cache "$cache/apt/cache";
		Dir::Cache::pkgcache "pkgcache.bin";
		Dir::Cache::srcpkgcache "srcpkgcache.bin";
		Dir::Etc::sourcelist "$cache/apt/sources.list";
		Dir::Etc::sourceparts "/dev/null";
		APT::Sandbox::User "root";
		APT::Architecture "$arch";
		APT::Architectures { "$arch"; };
		Acquire::Languages "none";
		Acquire::Check-Valid-Until "false";
		#clear APT::Update;
	CONF
}

apt_private() {
	local command=$1
	shift
	LC_ALL=C "$command" -c "$cache/apt/apt.conf" "$@"
}

# Suites come and go, so one that cannot be read is no error as long as the kernels are found in others.
update_lists() {
	apt_private apt-get -q update >"$cache/apt/update.log" 2>&1 ||
		say "some package lists could not be fetched; see $cache/apt/update.log"
}
