# SPDX-License-Identifier: Apache-2.0
"""What has to hold after an attack, whichever it was."""
import re


def rest_is_fine(scene, witness, ram):
    """Guard alive and idle, memory intact, a fresh VMM is served."""
    guard = scene.guard
    assert guard.alive(), (guard.process.returncode, guard.lines)
    ram.check()
    scene.device.good()
    fresh = scene.running(queues=2)
    fresh.ram.check()
    witness()
    used = guard.idle_cpu()
    assert used < 0.02, f"{used * 1000:.0f} ms of CPU in 50 idle ms"
    fresh.close()
    fresh.ram.close()
    scene.backend_is_happy()


def one_line(scene, mark, *texts):
    """Exactly one complaint since @mark; it names the device and @texts."""
    scene.guard.wait_line(r": (error|warning): (?!runs without)", mark)
    lines = scene.guard.complaints(mark)
    assert len(lines) == 1, lines
    assert re.match(r"moat guard\[console\]: (error|warning): ", lines[0])
    for text in texts:
        assert re.search(text, lines[0]), (text, lines[0])


