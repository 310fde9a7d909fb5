#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# tests/guests/boot.sh KERNEL-DIRECTORY INITRAMFS OUTPUT-DIRECTORY TESTS-DIRECTORY: boots one guest under emulation and
# lets it run live tests, once for each file in the directory of tests: it is called like the backend and holds the
# arguments for the tests. Leaves in the output directory:
#   BACKEND.log  what the tests printed      BACKEND.status  their exit status, if they ended
#   console.log  the kernel's console        verdict         "ok", or what went wrong with the guest as a whole
# Exits with 0 when it could be judged, whatever the tests found.
set -euo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=tests/setup.sh
. "$here/../setup.sh"

# "cut here" opens every warning of the kernel.
COMPLAINTS='\[ cut here \]|Kernel panic|BUG: |Oops: |general protection fault'

# A guest that hangs is given up after this many seconds.
limit=${TCPTOP_GUEST_TIMEOUT:-3000}

# The tests as one more piece of the initramfs, and the seconds that each run may take: one that hangs must leave time to
# the ones after it.
pack_settings() {
	local count
	mkdir -p "$work/etc"
	cp -r "$tests" "$work/etc/tests"
	count=$(find "$tests" -type f | wc -l)
	printf 'SECONDS_PER_RUN=%d\n' "$(((limit - limit / 10) / count))" >"$work/etc/guest"
	(cd "$work" && find etc | cpio --quiet -o -H newc -R 0:0)
}

# Emulated, because a machine that builds need not be able to run guests on its processor. Two processors, so that
# softirqs run beside the processes they serve, but one thread for both: with one each, an emulated processor now and
# then misses that the other has patched code, which is how trampolines come and go, and the guest dies of it.
# nosoftlockup, no_timer_check: emulated time stands still now and then, while the kernel checks its timer too. -erms,
# -fsrm, no5lvl: what copies memory byte by byte, and page tables of five levels, are fast on processors only; without them
# a guest needs a quarter less. pauth-impdef: likewise for pointers that are signed. A virtual arm64 machine has one serial
# port.
run_qemu() {
	local machine command_line='panic=-1 loglevel=5 nosoftlockup' to_results="file,id=results,path=$work/results"
	if [[ $(<"$kernel/arch") == arm64 ]]; then
		machine=(qemu-system-aarch64 -M virt -cpu 'max,pauth-impdef=on' -nodefaults
			-serial "file:$out/console.log" -device virtio-serial-pci
			-chardev "$to_results" -device 'virtconsole,chardev=results')
		command_line+=' console=ttyAMA0'
	else
		machine=(qemu-system-x86_64 -cpu 'max,-erms,-fsrm' -nodefaults
			-serial "file:$out/console.log" -serial "file:$work/results")
		command_line+=' console=ttyS0 no_timer_check no5lvl'
	fi
	timeout --kill-after=10 "$limit" "${machine[@]}" \
		-accel tcg,thread=single -m 1G -smp 2 -display none -no-reboot \
		-kernel "$kernel/vmlinuz" -initrd "$work/initramfs" -append "$command_line" \
		</dev/null >"$out/qemu.log" 2>&1 &
	qemu=$!
	wait "$qemu" || qemu_status=$?
	qemu=
}

# Did the kernel die of the emulator? Then the flags that it printed are such as no processor has: bit 1 is always set,
# bits 3, 5, 15 and those from 22 on never are.
emulator_failed() {
	local flags
	flags=$(grep -a -o -m 1 'EFLAGS: [0-9a-f]\{8\}' "$out/console.log" | head -n 1 | cut -d ' ' -f 2)
	[[ -n $flags ]] && (((16#$flags & 16#ffc08028) != 0 || (16#$flags & 2) == 0))
}

# Splits what the guest wrote into one file per backend.
split_results() {
	tr -d '\r' <"$work/results" >"$out/results.log"
	awk -v out="$out" '
		/^@begin / { log_file = out "/" $2 ".log"; printf "" > log_file; next }
		/^@end / { print $3 > (out "/" $2 ".status"); close(log_file); log_file = ""; next }
		log_file != "" { print > log_file }' "$out/results.log"
}

# What can be wrong with a guest apart from its tests. A complaint of the kernel counts even if the tests passed: we
# run code inside it.
verdict() {
	if grep -q '^@error ' "$out/results.log"; then
		sed -n 's/^@error //p' "$out/results.log"
	elif grep -qE "$COMPLAINTS" "$out/console.log"; then
		printf 'the kernel complains: %s\n' "$(grep -m 1 -A 1 -E "$COMPLAINTS" "$out/console.log" | tr '\r\n' '  ')"
	elif grep -q '^@done' "$out/results.log"; then
		printf 'ok\n'
	elif ((qemu_status == 124 || qemu_status == 137)); then
		printf 'hangs: given up after %s s\n' "$limit"
	else
		printf 'ended early (qemu: exit status %s)\n' "$qemu_status"
	fi
}

clean_up() {
	[[ -z $qemu ]] || kill "$qemu" 2>/dev/null || true
	rm -rf "$work"
}

kernel=$1
base=$2
out=$3
tests=$4
qemu=
qemu_status=0
work=$(mktemp -d)
trap clean_up EXIT
trap 'exit 143' TERM INT

rm -rf "$out"
mkdir -p "$out"
# The kernel takes archives one after another.
{
	cat "$base" "$kernel/modules.cpio"
	pack_settings
} >"$work/initramfs"
touch "$out/console.log" "$work/results"
run_qemu
if emulator_failed; then
	# Kept, to be looked at. What our programs do cannot bring this about.
	mv "$out/console.log" "$out/console.emulator.log"
	printf 'tcptop: the emulator failed, this guest runs once more: %s\n' "$out/console.emulator.log" >&2
	: >"$work/results"
	qemu_status=0
	touch "$out/console.log"
	run_qemu
fi
split_results
verdict >"$out/verdict"
