# SPDX-License-Identifier: Apache-2.0
"""What was measured, as a table against the aims and as a plot."""
import subprocess

# By depth: the aim and its text; a latency of 1.10 is 1 / 1.10 of the rate.
AIMS = {1: (1 / 1.10, ">= 1 / 1.10"), 32: (0.85, ">= 0.85"),
        8: (0.90, ">= 0.90")}
POOL_AIM = 0.90
MEMORY_AIM_KIB = 2048


def verdict(met):
    return "met" if met else "not met"


def size_name(size):
    return (f"{size >> 20} MiB" if size >= 1 << 20 else
            f"{size >> 10} KiB" if size >= 1 << 10 else f"{size} B")


def disk_table(results):
    print("guarded / unguarded disk, throughput at equal load; "
          "processor time in us a request")
    print(f"{'':24}{'aim':>16}{'seen':>7}{'range':>13}  {'':8}"
          f"{'straight/s':>11}{'guarded/s':>11}{'driver':>7}{'guard':>7}"
          f"{'daemon':>8}{'others':>8}")
    for d in results["disk"]:
        aim, text = AIMS[d["depth"]]
        cpu = d["guarded"]["cpu_us"]
        seen = f"{d['ratio']:.2f}"
        span = f"{d['ratio_min']:.2f}..{d['ratio_max']:.2f}"
        print(f"{d['name']:24}{text:>16}{seen:>7}{span:>13}  "
              f"{verdict(d['ratio'] >= aim):8}{d['straight']['rate']:11,.0f}"
              f"{d['guarded']['rate']:11,.0f}{cpu['driver']:7.1f}"
              f"{cpu['guard']:7.1f}{cpu['daemon']:8.1f}"
              f"{100 * d['others']:7.0f}%")


def pool_name(p):
    pieces = f"{p['pieces']} pages" if p["pieces"] > 1 else "one piece"
    return f"{size_name(p['bytes'])} {p['direction']}, {pieces}"


def pool_table(results):
    print("\npool map+copy+unmap / memcpy of the same bytes "
          f"(aim >= {POOL_AIM:.2f})")
    for p in results["pool"]:
        span = f"{p['ratio_min']:.2f}..{p['ratio_max']:.2f}"
        print(f"{pool_name(p):34}{p['ratio']:6.2f}{span:>13}  "
              f"{verdict(p['ratio'] >= POOL_AIM):8}{p['ns']:10,.0f} ns "
              f"against {p['plain_ns']:,.0f}")
    print("\nthe core alone, one thread, no waking: devq, dma, drvq and back")
    for r in results["relay"]:
        name = f"{size_name(r['bytes'])} {r['direction']}, depth {r['depth']}"
        print(f"{name:34}{1e9 / r['ns']:11,.0f} requests/s; "
              f"{r['extra_ns']:,.0f} ns a request are the relay's")


def memory_table(results):
    m = results["memory"]
    one = m["vm"][min(m["vm"])]
    kib = m["aim_kib"]
    print(f"\nmemory of an idle guard, in KiB (aim: <= {MEMORY_AIM_KIB} beside "
          f"the touched pool; seen {kib:.0f}: "
          f"{verdict(kib <= MEMORY_AIM_KIB)})")
    print(f"{'':24}{'its own':>9}{'shared':>9}{'pool':>9}{'guest RAM':>11}")
    rows = [("before a VM", m["before"])]
    rows += [(f"a VM with {n} queue{'s' if n > 1 else ''}", row)
             for n, row in m["vm"].items()]
    for name, row in rows:
        print(f"{name:24}{row['private']:9}{row['shared']:9}{row['pool']:9}"
              f"{row['ram']:11}")
    print(f"a further queue of {m['queue_size']} entries: "
          f"{m['queue_private_kib']:.0f} KiB and {m['queue_pool_kib']:.0f} KiB "
          f"of pool; 1000 devices: {m['thousand_mib']:.0f} MiB "
          f"(own {one['private']} KiB each, code and libraries once)")


def table(results):
    kind = results["machine"]
    print()
    if results["quick"]:
        print("QUICK RUN: it works; its figures mean nothing\n")
    disk_table(results)
    pool_table(results)
    memory_table(results)
    print(f"\n{kind['cpus']} processors ({kind['model']}), kernel "
          f"{kind['kernel']}; 'others': share of all processor time that went "
          "to other programs meanwhile")
    if max(d["others"] for d in results["disk"]) > 0.1:
        print("others used more than a tenth of this machine: ratios of pairs "
              "hold, if at all, as medians; look at the ranges")


PLOT = """
set terminal svg size 900,780 enhanced font 'DejaVu Sans,13' background '#ffffff'
set output '{svg}'
set encoding utf8
set multiplot
set border 3 lc rgb '#888888'
set tics nomirror textcolor rgb '#444444'
set grid xtics lc rgb '#e4e4e4' lt 1
set lmargin at screen 0.30
set rmargin at screen 0.96
set label 1 "{{/:Bold A disk behind the guard:}} throughput against the same disk unguarded" at screen 0.03,0.965 tc rgb '#222222'
set label 2 "{{/*0.85 {note}}}" at screen 0.03,0.935 tc rgb '#666666'
set label 3 "{{/:Bold The pool:}} map, copy and unmap against memcpy() of the same bytes" at screen 0.03,0.455 tc rgb '#222222'
set label 4 "{{/*0.85 bar: median; line: the middle half of the pairs; dashed: aim}}" at screen 0.03,0.425 tc rgb '#666666'

set tmargin at screen 0.905
set bmargin at screen 0.575
set xrange [0:{disk_max}]
set yrange [{disk_last}.7:-0.7]
set ytics ({disk_tics}) scale 0
set xtics 0,0.25 format '%.2f'
set key at screen 0.63,0.51 center horizontal textcolor rgb '#444444' samplen 1.5
plot $disk using 1:2 with points pt 7 ps 0.55 lc rgb '#9db8d9' title 'each pair', \\
  $median using 1:2:(0):(0.62) with vectors nohead lw 4 lc rgb '#1f5fa8' title 'median', \\
  $aim using 1:2:(0):(0.62) with vectors nohead lw 2 dt 2 lc rgb '#c44e3a' title 'aim', \\
  $median using 1:2:3 with labels left offset 0.7,0.3 tc rgb '#1f5fa8' notitle

unset label
unset key
set tmargin at screen 0.40
set bmargin at screen 0.05
set xrange [0:{pool_max}]
set yrange [{pool_last}.7:-0.7]
set ytics ({pool_tics}) scale 0
set arrow from 0.9,-0.7 to 0.9,{pool_last}.7 nohead lw 2 dt 2 lc rgb '#c44e3a'
plot $pool using (0):2:(0):1:($2-0.3):($2+0.3) with boxxyerror fs solid 0.85 noborder lc rgb '#9db8d9', \\
  $pool using 1:2:3:4 with xerrorbars pt 7 ps 0.4 lw 1.5 lc rgb '#1f5fa8'
unset multiplot
"""


def block(name, rows):
    lines = "\n".join(" ".join(map(str, row)) for row in rows)
    return f"${name} << EOD\n{lines}\nEOD\n"


def quartiles(values):
    values = sorted(values)
    return values[len(values) // 4], values[-1 - len(values) // 4]


def tics(names):
    return ", ".join(f'"{name}" {i}' for i, name in enumerate(names))


def plot(results, svg):
    disk, pool = results["disk"], results["pool"]
    # A pair far out is drawn at the edge rather than squeezing all others.
    disk_max = 2.0
    ratios = [[min(p["ratio"], disk_max) for p in d["pairs"]] for d in disk]
    data = block("disk", [(r, i) for i, rs in enumerate(ratios) for r in rs])
    data += block("median", [(min(d["ratio"], disk_max), i - 0.31,
                              f"{d['ratio']:.2f}") for i, d in enumerate(disk)])
    data += block("aim", [(AIMS[d["depth"]][0], i - 0.31)
                          for i, d in enumerate(disk)])
    data += block("pool", [
        (p["ratio"], i, *quartiles([b / a for a, b in zip(p["ours_ns"],
                                                          p["theirs_ns"])]))
        for i, p in enumerate(pool)])
    kind = results["machine"]
    script = data + PLOT.format(
        svg=svg, disk_max=disk_max, disk_last=len(disk) - 1,
        disk_tics=tics(d["name"] for d in disk),
        pool_max=1.5,
        pool_last=len(pool) - 1, pool_tics=tics(pool_name(p) for p in pool),
        note=f"{results['date']}, {kind['cpus']} processors, others used "
        f"{100 * max(d['others'] for d in disk):.0f}% of them; "
        "beyond 2.0 drawn at 2.0")
    subprocess.run(["gnuplot"], input=script, text=True, check=True)
