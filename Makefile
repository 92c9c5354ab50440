# SPDX-License-Identifier: Apache-2.0
# Thin wrappers; what does the work stands in scripts/, demo/ and bench/.
PYTHON := /usr/bin/python3

help:
	@echo "make demo      a guest with a disk, unguarded and guarded: what the"
	@echo "               disk's process can read of it (a minute)"
	@echo "make test      unit, lint, audit, hostile and end-to-end tests, with"
	@echo "               user-mode Linux and Debian 12's QEMU (some minutes)"
	@echo "make test-all  those, and the tests against newer peers: QEMU 11,"
	@echo "               libblkio, virtiofsd, passt, an arm64 guest (once: downloads"
	@echo "               them and Linux's source, and builds the guest's kernel)"
	@echo "make bench     speed as ratios: guarded against unguarded, moat-blk and"
	@echo "               moat-fs against others"
	@echo "make build     build/src/cmd/moat"
	@echo "make format    formats the C sources in place"
	@echo "make tidy      runs clang-tidy over the C sources"
	@echo "make clean     removes build/, build-asan/ and out/"
	@echo
	@echo "Each first installs the Debian packages that it needs and that are"
	@echo "missing (scripts/setup.sh), as root or with sudo."

build:
	@scripts/setup.sh build
	@scripts/build

demo:
	@scripts/setup.sh demo
	@scripts/build
	@$(PYTHON) demo/demo.py

test:
	@scripts/setup.sh test
	@scripts/run-tests

test-all:
	@scripts/setup.sh test test-all
	@scripts/run-tests --all

# For .ci/run, which has run `make test` before.
test-additional:
	@scripts/setup.sh test test-all
	@scripts/run-tests --additional

bench:
	@scripts/setup.sh bench
	@scripts/build
	@bench/run
	@bench/blk
	@bench/fs --guest --dax

format:
	@scripts/setup.sh format
	git ls-files '*.[ch]' | xargs clang-format -i

tidy:
	@scripts/setup.sh tidy
	@scripts/build
	@# One at a time: of several clang-tidy 14 mixes up what va_list is of whom.
	git ls-files 'src/*.c' | xargs -n 1 clang-tidy --quiet -p build

clean:
	rm -rf build build-asan out

.PHONY: help build demo test test-all test-additional bench format tidy clean
