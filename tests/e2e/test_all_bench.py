# SPDX-License-Identifier: Apache-2.0
"""make bench works: each figure is there and each file is written.  What the
figures are is no matter of a test: machines are shared."""
import json
import os
import xml.etree.ElementTree

from procs import TOP, run


def test_a_quick_bench_measures_each_work_and_writes_table_json_and_plot(work):
    done = run([os.path.join(TOP, "bench/run"), "--quick", "--output",
                work.path])
    assert done.returncode == 0, done.stdout + done.stderr

    with open(work / "bench.json", encoding="utf-8") as f:
        results = json.load(f)
    assert {(d["size"], d["depth"], d["write"]) for d in results["disk"]} == {
        (size, depth, write) for size, depth in ((4096, 1), (4096, 32),
                                                 (131072, 8))
        for write in (False, True)}
    for d in results["disk"]:
        assert d["pairs"] and all(p["ratio"] > 0 for p in d["pairs"])
        assert all(p["straight"]["requests"] == p["guarded"]["requests"] > 0
                   for p in d["pairs"])
    assert {p["bytes"] for p in results["pool"]} == {512, 4096, 65536, 1 << 20}
    assert all(p["ratio"] > 0 for p in results["pool"])
    assert results["relay"]
    assert results["memory"]["before"]["private"] > 0
    one, eight = (results["memory"]["vm"][n] for n in ("1", "8"))
    assert 0 < one["pool"] < eight["pool"]

    for heading in ("guarded / unguarded disk", "pool map+copy+unmap",
                    "the core alone", "memory of an idle guard"):
        assert heading in done.stdout
    plot = xml.etree.ElementTree.parse(work / "bench.svg").getroot()
    assert plot.tag.endswith("svg") and len(plot)
