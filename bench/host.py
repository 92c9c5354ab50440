# SPDX-License-Identifier: Apache-2.0
"""The machine that is measured on, and who else uses it meanwhile."""
import os


def machine():
    model = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        for line in f:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {"cpus": len(os.sched_getaffinity(0)), "model": model,
            "kernel": os.uname().release, "load": os.getloadavg()[0]}


def processors():
    """(busy, all) processor seconds since the machine started."""
    with open("/proc/stat", encoding="ascii") as f:
        t = [int(x) / os.sysconf("SC_CLK_TCK") for x in f.readline().split()[1:9]]
    return sum(t) - t[3] - t[4], sum(t)


def others_share(before, after, own):
    """The share of all processors that went to programs other than ours."""
    busy = (after[0] - before[0]) - own
    total = after[1] - before[1]
    return max(0.0, busy / total) if total > 0 else 0.0
