# SPDX-License-Identifier: Apache-2.0
"""Wrong use is refused with a clear line, a status that is not 0, and nothing
half set up."""
import json
import os
import re
import socket

import pytest

from backends import StorageDaemon, make_image
from procs import moat, run

# Options of `moat guard`, and a word that its complaint must have.
WRONG = [
    ([], "socket-path"),
    (["--socket-path={}/g"], "backend"),
    (["--backend={}/b"], "socket-path"),
    (["--socket-path={}/g", "--backend={}/b", "--no-such-option"],
     "no-such-option"),
    (["--socket-path={}/g", "--backend={}/b", "surplus"], "--exec"),
    (["--socket-path={}/g", "--fd=3", "--backend={}/b"], "fd"),
    (["--socket-path={}/g", "--backend={}/b", "--exec", "--", "true"],
     "exec"),
    (["--socket-path={}/g", "--exec"], "exec"),
    (["--fd=nine", "--backend={}/b"], "nine"),
    (["--fd=-1", "--backend={}/b"], "-1"),
    (["--socket-path={}/g", "--backend={}/b", "--pool-size=0"], "pool-size"),
    (["--socket-path={}/g", "--backend={}/b", "--pool-size=12Q"], "12Q"),
    (["--socket-path={}/g", "--backend={}/b", "--pool-size=-1M"], "-1M"),
    (["--socket-path={}/g", "--backend={}/b",
      "--pool-size=99999999999999999999G"], "pool-size"),
    (["--socket-path={}/g", "--backend={}/b", "--poll-us=x"], "poll-us"),
    (["--socket-path={}/g", "--backend={}/b", "--sandbox=wall"], "wall"),
    (["--socket-path={}/g", "--backend={}/b", "--log-level=loud"], "loud"),
    (["--socket-path={}/g", "--backend={}/b", "--device=toaster"],
     "toaster"),
]


@pytest.mark.parametrize("options, word", WRONG,
                         ids=lambda v: " ".join(v)[:60]
                         if isinstance(v, list) else v)
def test_wrong_options_are_refused_by_name(work, options, word):
    done = run([moat(), "guard"] + [o.format(work.path) for o in options])
    assert done.returncode == 2, done.stderr
    assert word in done.stderr
    assert done.stdout == ""
    assert os.listdir(work.path) == [], "something was set up"


@pytest.mark.parametrize("device", ["gpu", "balloon", "iommu"])
def test_a_device_with_addresses_in_its_payload_is_refused(work, device):
    done = run([moat(), "guard", f"--socket-path={work / 'g'}",
                f"--backend={work / 'b'}", f"--device={device}"])
    assert done.returncode == 2
    assert device in done.stderr and "address" in done.stderr
    assert os.listdir(work.path) == []


def test_a_backend_that_is_not_there_is_named(work):
    done = run([moat(), "guard", f"--socket-path={work / 'g'}",
                f"--backend={work / 'b'}"])
    assert done.returncode == 1
    assert work / "b" in done.stderr
    assert os.listdir(work.path) == []


# From here on there is one: it must not be what is complained about.
@pytest.fixture
def backend(work):
    with StorageDaemon(work / "b", make_image(work / "disk", 1 << 20)):
        yield work / "b"


@pytest.mark.parametrize("fd", [0, 9, 1000000])
def test_a_descriptor_that_is_no_socket_is_refused(backend, fd):
    done = run([moat(), "guard", f"--fd={fd}", f"--backend={backend}"])
    assert done.returncode == 2
    assert re.search(rf"\b{fd}\b", done.stderr)


def test_a_folder_that_is_not_there_is_named(work, backend):
    done = run([moat(), "guard", f"--socket-path={work / 'no/g'}",
                f"--backend={backend}"])
    assert done.returncode == 1
    assert "no/g" in done.stderr


def test_a_socket_path_too_long_for_a_socket_is_refused(backend):
    path = "/tmp/" + "x" * 120
    done = run([moat(), "guard", f"--socket-path={path}",
                f"--backend={backend}"])
    assert done.returncode in (1, 2)
    assert path in done.stderr and "too long" in done.stderr


def test_a_socket_path_in_use_is_not_taken_away(work, backend):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(work / "g")
        other.listen()
        done = run([moat(), "guard", f"--socket-path={work / 'g'}",
                    f"--backend={backend}"])
        assert done.returncode == 1
        assert work / "g" in done.stderr
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(work / "g")


def test_a_file_at_the_socket_path_is_not_taken_away(work, backend):
    with open(work / "g", "w", encoding="ascii") as f:
        f.write("mine")
    done = run([moat(), "guard", f"--socket-path={work / 'g'}",
                f"--backend={backend}"])
    assert done.returncode == 1
    assert work / "g" in done.stderr
    with open(work / "g", encoding="ascii") as f:
        assert f.read() == "mine"


def test_a_command_that_can_not_be_started_is_named(work):
    done = run([moat(), "guard", f"--socket-path={work / 'g'}", "--exec",
                "--", work / "no-such-program"])
    assert done.returncode == 1
    assert "no-such-program" in done.stderr
    assert os.listdir(work.path) == []


def test_print_capabilities_is_what_the_conventions_say():
    done = run([moat(), "guard", "--print-capabilities"])
    assert done.returncode == 0 and done.stderr == ""
    assert isinstance(json.loads(done.stdout)["type"], str)


@pytest.mark.parametrize("argv", [["--help"], ["guard", "--help"],
                                  ["audit", "--help"], ["--version"]])
def test_help_goes_to_stdout_and_is_no_error(argv):
    done = run([moat(), *argv])
    assert done.returncode == 0 and done.stderr == ""
    assert "moat" in done.stdout


@pytest.mark.parametrize("argv", [[], ["no-such-command"],
                                  ["audit", "--no-such-option"],
                                  ["audit", "--pid=x"]])
def test_wrong_commands_are_refused(argv):
    done = run([moat(), *argv])
    assert done.returncode == 2
    assert "moat" in done.stderr and done.stdout == ""
