#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""report.py RESULTS README: makes the table of README out of what the guest has printed.

A cell says what a tool reported of a scenario: for each end of its connections the bytes out and in, by process. "right"
means all of it to the byte, or to the KiB where a tool shows no less; else it says what was wrong.
"""

import json
import re
import sys
from collections import defaultdict

K = 1024
IP = r"(?:::ffff:)?127\.0\.0\.1"


def sections(path):
    files, name = defaultdict(list), None
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            line = line.rstrip("\r\n")
            if line.startswith("@"):
                name = line.removeprefix("@file ").removeprefix("@")
            else:
                files[name].append(line)
    return files


def add(ends, end, pid, out, received):
    """ends: (local port, remote port) -> pid -> [out, in]."""
    moved = ends[end][pid]
    moved[0] += out
    moved[1] += received


def new_ends():
    return defaultdict(lambda: defaultdict(lambda: [0, 0]))


def ours(lines):
    """tcptop: the actors' shares out of the events, to the byte."""
    ends = new_ends()
    for line in lines:
        if not line.startswith("{"):
            continue
        event = json.loads(line)
        kind = event["type"]
        if kind not in ("tcp_send", "tcp_recv", "udp_send", "udp_recv"):
            continue
        moved = (event["bytes"], 0) if kind.endswith("send") else (0, event["bytes"])
        add(ends, (event["local_port"], event["remote_port"]), event["actor_pid"] or 0, *moved)
    return ends, 1


def bcc_tcptop(lines):
    ends = new_ends()
    row = re.compile(rf"^(\d+) +.{{1,16}}? +{IP}:(\d+) +{IP}:(\d+) +(\d+) +(\d+)$")
    for found in filter(None, map(row.match, lines)):
        pid, local, remote, received, out = map(int, found.groups())
        add(ends, (local, remote), pid, out * K, received * K)
    return ends, K


def bcc_tcplife(lines):
    ends = new_ends()
    row = re.compile(rf"^(\d+) +.{{1,16}}? +{IP} +(\d+) +{IP} +(\d+) +(\d+) +(\d+) +[\d.]+$")
    for found in filter(None, map(row.match, lines)):
        pid, local, remote, out, received = map(int, found.groups())
        add(ends, (local, remote), pid, out * K, received * K)
    return ends, K


def ss(scenarios):
    """bytes_acked and bytes_received of the last look before the close; without processes, which it was not asked for."""
    ends = new_ends()
    row = re.compile(rf"{IP}\]?:(\d+) +\[?{IP}\]?:(\d+) ")
    for scenario in scenarios:
        for line in scenario.get("ss", []):
            found = row.search(line)
            if not found:
                continue
            numbers = [re.search(rf"{name}:(\d+)", line) for name in ("bytes_acked", "bytes_received")]
            out, received = (int(number[1]) if number else 0 for number in numbers)
            add(ends, tuple(map(int, found.groups())), None, out, received)
    return ends, 1


def nethogs(lines):
    """The latest line of each process: bytes sent and received since it was first seen, headers included."""
    latest = {}
    for line in lines:
        found = re.match(r"^(.+)/(\d+)/\d+\t([\d.]+)\t([\d.]+)$", line)
        if found:
            latest[int(found[2])] = (float(found[3]), float(found[4]))
    return latest


def judge(scenario, ends, unit):
    port = scenario["port"]
    sides = {
        "client": [shares for (_, remote), shares in ends.items() if remote == port],
        "server": [shares for (local, _), shares in ends.items() if local == port],
    }
    wrong = []
    for side, seen in sides.items():
        expected = {pid: [out, received] for pid, out, received in scenario[side]}
        got = defaultdict(lambda: [0, 0])
        for shares in seen:
            for pid, (out, received) in shares.items():
                got[pid][0] += out
                got[pid][1] += received
        if None in got:
            expected = {None: [sum(moved[i] for moved in expected.values()) for i in (0, 1)]}
        want = {pid: [n // unit * unit for n in moved] for pid, moved in expected.items() if any(moved)}
        have = {pid: moved for pid, moved in got.items() if any(moved)}
        if want != have:
            wrong.append(difference(side, want, have, unit))
    return "; ".join(wrong) or "right"


def amount(moved, unit):
    return "/".join(f"{n // unit}" for n in moved)


def difference(side, want, have, unit):
    if not have:
        return f"{side}: nothing"
    sums = [[sum(moved[i] for moved in all_.values()) for i in (0, 1)] for all_ in (want, have)]
    size = K if unit == K else 1
    if sums[0] != sums[1]:
        what = f"{amount(sums[1], size)} of {amount(sums[0], size)} {'KiB' if size == K else 'bytes'}"
        return f"{side}: {what}" + (f", {len(have)} of {len(want)} processes" if len(have) != len(want) else "")
    return f"{side}: {'the wrong process' if len(have) == len(want) else f'{len(have)} of {len(want)} processes'}"


def judge_nethogs(scenario, latest):
    wrong = []
    for side in ("client", "server"):
        want = {pid: moved for pid, *moved in scenario[side] if any(moved)}
        have = {pid: latest[pid] for pid in want if pid in latest}
        if not want:
            continue
        if len(have) < len(want):
            wrong.append(f"{side}: {len(have) or 'none'} of {len(want)} processes")
            continue
        sums = [[int(sum(moved[i] for moved in all_.values())) for i in (0, 1)] for all_ in (want, have)]
        if sums[0] != sums[1]:
            wrong.append(f"{side}: {amount(sums[1], 1)} of {amount(sums[0], 1)} bytes")
    return "; ".join(wrong) or "right"


def expected(scenario):
    def side(name):
        return " + ".join(amount(moved, 1) for _, *moved in scenario[name][:2]) + (" + …" if len(scenario[name]) > 2 else "")

    return f"{side('client') or '–'} · {side('server') or '–'}"


def table(files):
    scenarios = [json.loads(line) for line in files["traffic.txt"] if line.startswith("{")]
    tools = {
        "tcptop": ours(files["tcptop.txt"]),
        "bcc tcptop": bcc_tcptop(files["bcc-tcptop.txt"]),
        "bcc tcplife": bcc_tcplife(files["bcc-tcplife.txt"]),
        "ss -ti": ss(scenarios),
    }
    hogs = nethogs(files["nethogs.txt"])
    rows = [["#", "scenario", "expected: client out/in · server out/in", *tools, "nethogs"]]
    rows.append(["---"] * len(rows[0]))
    right = dict.fromkeys([*tools, "nethogs"], 0)
    for scenario in scenarios:
        is_udp = scenario.get("udp")
        cells = {name: judge(scenario, *seen) for name, seen in tools.items()}
        cells["nethogs"] = judge_nethogs(scenario, hogs)
        if scenario["port"] == 9025:
            cells = {name: "right" if cell == "right" else cell for name, cell in cells.items()}
        if is_udp:
            for name in ("bcc tcptop", "bcc tcplife", "ss -ti"):
                cells[name] = "TCP only"
        for name, cell in cells.items():
            right[name] += cell == "right"
        marked = [cell if cell in ("right", "TCP only") else f"**{cell}**" for cell in cells.values()]
        rows.append([str(scenario["scenario"]), scenario["name"], expected(scenario), *marked])
    rows.append(["", "right", str(len(scenarios)), *map(str, right.values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main():
    results, readme = sys.argv[1:]
    files = sections(results)
    with open(readme, encoding="utf-8") as file:
        text = file.read()
    begin, end = "<!-- begin of the table -->", "<!-- end of the table -->"
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    versions = "Measured with " + ", ".join(line.strip() for line in files["versions"] if line.strip()) + "."
    with open(readme, "w", encoding="utf-8") as file:
        file.write(f"{head}{begin}\n\n{versions}\n\n{table(files)}\n\n{end}{tail}")


main()
