"""A small export of Nsight Systems, made by hand: the tables and columns of its documented schema that we read.

Two runs on one thread.  Each has two steps of 40 us: a network call of 20 us with three launches, an update of 5 us
with one; the second step of each also replays a graph and copies to the host.
"""

from __future__ import annotations

import sqlite3

PROCESS = 77 * 0x1000000
THREAD = PROCESS + 78


def write_export(path, old: bool = False) -> None:
    """``old``: texts stand in the rows and not among the strings, and columns that came later are missing."""
    base = sqlite3.connect(path)
    _tables(base, old)
    strings: dict[str, int] = {}
    link = 0

    def string(text):
        if text not in strings:
            strings[text] = len(strings) + 1
            base.execute("INSERT INTO StringIds VALUES (?, ?)", (strings[text], text))
        return strings[text]

    def nvtx(kind, begin, end, text, domain=1, number=None):
        row = {"start": begin, "end": end, "eventType": kind, "globalTid": THREAD, "domainId": domain}
        row |= {"text": text} if old or kind == 75 else {"textId": string(text)}
        _insert(base, "NVTX_EVENTS", {**row, "int64Value": number})

    def launch(name, begin, device_begin, length, kernel=None):
        nonlocal link
        link += 1
        api = {"start": begin, "end": begin + 1000, "globalTid": THREAD, "correlationId": link}
        _insert(base, "CUPTI_ACTIVITY_KIND_RUNTIME", {**api, "nameId": string(name + "_v7000"), "returnValue": 0})
        work = {"start": device_begin, "end": device_begin + length, "correlationId": link, "globalPid": PROCESS}
        if name == "cudaGraphLaunch":
            _insert(base, "CUPTI_ACTIVITY_KIND_GRAPH_TRACE", {**work, "graphId": 1})
        elif name == "cudaMemcpyAsync":
            _insert(base, "CUPTI_ACTIVITY_KIND_MEMCPY", {**work, "bytes": 4, "copyKind": 2})
        else:
            names = {"demangledName": string(kernel + "<float>(int)"), "shortName": string(kernel)}
            _insert(base, "CUPTI_ACTIVITY_KIND_KERNEL", {**work, **names, "streamId": 7})

    nvtx(75, 0, None, "fastsample")
    nvtx(75, 0, None, "torch", domain=2)
    nvtx(59, 0, 1_000_000, "network", domain=2)  # of somebody else
    for run in range(2):
        origin = 1_000_000 + run * 200_000
        nvtx(59, origin, origin + 100_000, "run ddim 4096 bytes", number=2)
        for step in range(2):
            at = origin + 5_000 + step * 45_000
            nvtx(59, at, at + 40_000, "step ddim", number=step)
            nvtx(59, at + 1_000, at + 21_000, "network", number=step)
            for k in range(3):
                launch("cudaLaunchKernel", at + 2_000 + 3_000 * k, at + 4_000 + 5_000 * k, 4_000, "network_kernel")
            nvtx(59, at + 22_000, at + 27_000, "update", number=step)
            launch("cudaLaunchKernelExC", at + 23_000, at + 25_000, 2_000, "update_kernel")
            if step == 1:
                nvtx(59, at + 28_000, at + 32_000, "replay", number=0)
                launch("cudaGraphLaunch", at + 29_000, at + 30_000, 6_000)
                launch("cudaMemcpyAsync", at + 33_000, at + 37_000, 1_000)
    base.commit()
    base.close()


def _tables(base: sqlite3.Connection, old: bool) -> None:
    device = "start INT, end INT, correlationId INT, globalPid INT"
    texts = "text TEXT" if old else "text TEXT, textId INT, jsonText TEXT, uint64Value INT"
    for name, columns in {
        "StringIds": "id INTEGER PRIMARY KEY, value TEXT NOT NULL",
        "NVTX_EVENTS": f"start INT, end INT, eventType INT, globalTid INT, domainId INT, int64Value INT, {texts}",
        "CUPTI_ACTIVITY_KIND_RUNTIME": "start INT, end INT, globalTid INT, correlationId INT, nameId INT, "
        "returnValue INT",
        "CUPTI_ACTIVITY_KIND_KERNEL": f"{device}, streamId INT, demangledName INT, shortName INT",
        "CUPTI_ACTIVITY_KIND_MEMCPY": f"{device}, bytes INT, copyKind INT",
        "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": f"{device}, graphId INT",
    }.items():
        base.execute(f"CREATE TABLE {name} ({columns})")


def _insert(base: sqlite3.Connection, table: str, row: dict) -> None:
    places = ", ".join("?" * len(row))
    base.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", tuple(row.values()))
