# SPDX-License-Identifier: Apache-2.0
"""What was measured, as a table against the aims and as a plot."""
import subprocess

# Of throughput, by depth; a latency of 1.10 is 1 / 1.10 of the rate.
BOUNCE_AIMS = {1: (1 / 1.10, ">= 1 / 1.10"), 32: (0.85, ">= 0.85"),
               8: (0.90, ">= 0.90")}
DIRECT_AIM = 0.98
POOL_AIM = 0.90
MEMORY_AIM_KIB = 2048


def verdict(met):
    return "met" if met else "not met"


def size_name(size):
    return (f"{size >> 20} MiB" if size >= 1 << 20 else
            f"{size >> 10} KiB" if size >= 1 << 10 else f"{size} B")


def disk_aim(d):
    return BOUNCE_AIMS[d["depth"]]


def direct_aim(_):
    return DIRECT_AIM, f">= {DIRECT_AIM:.2f}"


def no_aim(_):
    return None, ""


def ways_table(rows, ours, theirs, aim_of):
    """Two ways to a disk, load by load."""
    native = bool(rows[0]["latency"])
    print(f"{'':24}{'aim':>12}{'seen':>6}{'range':>12}"
          + (f"{'middle half':>13}" if native else "") + f" {'':8}"
          + (f"{'latency':>9}{'p99':>6}" if native else "")
          + f"{theirs + '/s':>13}{ours + '/s':>11}"
          f"{'driver':>13}{'daemon':>13}{'guard':>8}{'others':>8}")
    for d in rows:
        aim, text = aim_of(d)
        span = f"{d['ratio_min']:.2f}..{d['ratio_max']:.2f}"
        half = "{:.2f}..{:.2f}".format(*d["ratio_half"])
        half = f"{half:>13}" if native else ""
        seen = min(d["ratio"], d["latency"].get("median", d["ratio"]))
        met = "" if aim is None else verdict(seen >= aim)
        late = ("" if not native else f"{d['latency']['median']:9.2f}"
                f"{d['latency']['p99']:6.2f}")
        a, b = d["ours"]["cpu_us"], d["theirs"]["cpu_us"]
        cpu = "".join(f"{a[part]:6.1f} ({b[part]:4.1f})"
                      for part in ("driver", "daemon"))
        print(f"{d['name']:24}{text:>12}{d['ratio']:6.2f}{span:>12}{half} {met:8}"
              f"{late}"
              f"{d['theirs']['rate']:13,.0f}{d['ours']['rate']:11,.0f}"
              f"{cpu}{a['guard']:8.2f}{100 * d['others']:7.0f}%")


def disk_table(rows):
    print("guarded / unguarded disk: throughput at equal load; processor time "
          "in us a request\n(that without the guard in brackets)")
    ways_table(rows, "guarded", "straight", disk_aim)


def direct_table(rows):
    print("\ndirect / unguarded disk that takes no time, rings and buffers in the "
          "guest's pool:\nthroughput, and latencies (median and p99; 1.02: 2 % "
          "shorter; the aim is for throughput\nand median)")
    ways_table(rows, "direct", "straight", direct_aim)


def hybrid_table(rows):
    print("\nhybrid / bounce, a disk that takes no time, buffers in the guest's pool; "
          "both are guarded\n(bounce in brackets, where the guard took "
          + ", ".join(f"{d['theirs']['cpu_us']['guard']:.1f}" for d in rows)
          + " us a request)")
    ways_table(rows, "hybrid", "bounce", no_aim)


def pool_name(p):
    pieces = f"{p['pieces']} pages" if p["pieces"] > 1 else "one piece"
    return f"{size_name(p['bytes'])} {p['direction']}, {pieces}"


def pool_table(rows):
    print("\npool map+copy+unmap / memcpy of the same bytes "
          f"(aim >= {POOL_AIM:.2f})")
    for p in rows:
        span = f"{p['ratio_min']:.2f}..{p['ratio_max']:.2f}"
        print(f"{pool_name(p):34}{p['ratio']:6.2f}{span:>13}  "
              f"{verdict(p['ratio'] >= POOL_AIM):8}{p['ns']:10,.0f} ns "
              f"against {p['plain_ns']:,.0f}")


def relay_table(rows):
    print("\nthe core alone, one thread, no waking: devq, dma, drvq and back")
    for r in rows:
        name = f"{size_name(r['bytes'])} {r['direction']}, depth {r['depth']}"
        print(f"{name:34}{1e9 / r['ns']:11,.0f} requests/s; "
              f"{r['extra_ns']:,.0f} ns a request are the relay's")


def memory_table(m):
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


TABLES = {"disk": disk_table, "direct": direct_table, "hybrid": hybrid_table,
          "pool": pool_table, "relay": relay_table, "memory": memory_table}
# Of disks: the title of the plot, and the aims.
PLOTS = {
    "disk": ("A disk behind the guard:",
             "throughput against the same disk unguarded", disk_aim),
    "direct": ("Rings and buffers in the guest's pool:",
               "direct against unguarded, a disk that takes no time", direct_aim),
    "hybrid": ("Buffers in the guest's pool:",
               "hybrid against bounce, a disk that takes no time", no_aim),
}


def table(results):
    kind = results["machine"]
    print()
    if results["quick"]:
        print("QUICK RUN: it works; its figures mean nothing\n")
    if results["control"]:
        print("CONTROL: for 'direct' read 'unguarded once more'\n")
    for part, show in TABLES.items():
        if part in results:
            show(results[part])
    print(f"\n{kind['cpus']} processors ({kind['model']}), kernel "
          f"{kind['kernel']}; 'others': share of all processor time that went "
          "to other programs meanwhile")
    if max([0, *others(results)]) > 0.1:
        print("others used more than a tenth of this machine: ratios of pairs "
              "hold, if at all, as medians; look at the ranges")


def others(results):
    return [d["others"] for part in PLOTS for d in results.get(part, ())]


HEAD = """
set terminal svg size 900,{height} enhanced font 'DejaVu Sans,13' background '#ffffff'
set output '{svg}'
set encoding utf8
set multiplot
set border 3 lc rgb '#888888'
set tics nomirror textcolor rgb '#444444'
set grid xtics lc rgb '#e4e4e4' lt 1
set lmargin at screen 0.30
set rmargin at screen 0.96
set xtics 0,0.25 format '%.2f'
unset key
"""
# Where a panel is and what it says; top and others are of the whole height.
PANEL = """
unset label
unset arrow
set label 1 "{{/:Bold {title}}} {what}" at screen 0.03,{at_title} tc rgb '#222222'
set label 2 "{{/*0.85 {note}}}" at screen 0.03,{at_note} tc rgb '#666666'
set tmargin at screen {top}
set bmargin at screen {bottom}
set xrange [0:{width}]
set yrange [{last}.7:-0.7]
set ytics ({tics}) scale 0
"""
DISK_PLOT = """
plot ${part} using 1:2 with points pt 7 ps 0.55 lc rgb '#9db8d9', \\
  $m{part} using 1:2:(0):(0.62) with vectors nohead lw 4 lc rgb '#1f5fa8', \\
  {aims}$m{part} using 1:2:3 with labels left offset 0.7,0.3 tc rgb '#1f5fa8'
"""
AIMS_PLOT = ("$a{part} using 1:2:(0):(0.62) with vectors nohead lw 2 dt 2 "
             "lc rgb '#c44e3a', ")
POOL_PLOT = """
set arrow from {aim},-0.7 to {aim},{last}.7 nohead lw 2 dt 2 lc rgb '#c44e3a'
plot $pool using (0):2:(0):1:($2-0.3):($2+0.3) with boxxyerror fs solid 0.85 noborder lc rgb '#9db8d9', \\
  $pool using 1:2:3:4 with xerrorbars pt 7 ps 0.4 lw 1.5 lc rgb '#1f5fa8'
"""
PANEL_HEIGHT = 370      # pixels
# A pair far out is drawn at the edge rather than squeezing all others.
DISK_MAX = 2.0


def block(name, rows):
    lines = "\n".join(" ".join(map(str, row)) for row in rows)
    return f"${name} << EOD\n{lines}\nEOD\n"


def quartiles(values):
    values = sorted(values)
    return values[len(values) // 4], values[-1 - len(values) // 4]


def tics(names):
    return ", ".join(f'"{name}" {i}' for i, name in enumerate(names))


def panel(number, height, title, what, note, names, width):
    """The frame of panel number (0 is on top)."""
    def at(pixels):
        return f"{1 - (number * PANEL_HEIGHT + pixels) / height:.4f}"
    return PANEL.format(title=title, what=what, note=note, at_title=at(26),
                        at_note=at(50), top=at(74), bottom=at(332),
                        last=len(names) - 1, tics=tics(names), width=width)


def disk_plot(part, rows, aim_of):
    aims = [(aim_of(d)[0], i - 0.31) for i, d in enumerate(rows)]
    data = block(part, [(min(p["ratio"], DISK_MAX), i)
                        for i, d in enumerate(rows) for p in d["pairs"]])
    data += block(f"m{part}", [(min(d["ratio"], DISK_MAX), i - 0.31,
                                f"{d['ratio']:.2f}")
                               for i, d in enumerate(rows)])
    has_aims = all(aim is not None for aim, _ in aims)
    if has_aims:
        data += block(f"a{part}", aims)
    return data, DISK_PLOT.format(
        part=part, aims=AIMS_PLOT.format(part=part) if has_aims else "")


def pool_plot(rows):
    data = block("pool", [
        (p["ratio"], i, *quartiles([b / a for a, b in zip(p["ours_ns"],
                                                          p["theirs_ns"])]))
        for i, p in enumerate(rows)])
    return data, POOL_PLOT.format(aim=POOL_AIM, last=len(rows) - 1)


def plot(results, svg):
    parts = [part for part in (*PLOTS, "pool") if part in results]
    height = PANEL_HEIGHT * len(parts)
    note = (f"{results['date']}, {results['machine']['cpus']} processors; points: "
            "pairs, bar: median, dashed: aim; beyond 2.0 drawn at 2.0; others "
            "used {:.0f}%")
    blocks, script = "", HEAD.format(height=height, svg=svg)
    for number, part in enumerate(parts):
        rows = results[part]
        if part == "pool":
            script += panel(
                number, height, "The pool:",
                "map, copy and unmap against memcpy() of the same bytes",
                "bar: median; line: the middle half of the pairs; dashed: aim",
                [pool_name(p) for p in rows], 1.5)
            data, draw = pool_plot(rows)
        else:
            title, what, aim_of = PLOTS[part]
            busy = 100 * max(d["others"] for d in rows)
            script += panel(number, height, title, what, note.format(busy),
                            [d["name"] for d in rows], DISK_MAX)
            data, draw = disk_plot(part, rows, aim_of)
        blocks += data
        script += draw
    if parts:
        subprocess.run(["gnuplot"], text=True, check=True,
                       input=blocks + script + "unset multiplot\n")
