#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that are missing, and nothing else.
#
# usage: setup.sh PROFILE...      (build demo test test-all bench format tidy)
#
# With everything in place this is instant and needs no network.  It wants to be
# root only to install; otherwise it asks sudo.
set -eu
here=$(dirname "$(readlink -f "$0")")

build="build-essential meson ninja-build pkg-config libseccomp-dev libfdt-dev
	libcairo2-dev libjson-c-dev libcmocka-dev liburing-dev python3"
uml="user-mode-linux qemu-system-common busybox-static e2fsprogs"

packages=
kernel=
peers=
arm64=
for profile; do
	case $profile in
	build)	packages="$packages $build" ;;
	demo)	packages="$packages $build $uml" ;;
	test)
		packages="$packages $build $uml qemu-system-x86 qemu-utils
			clang-format python3-pytest python3-pytest-timeout
			python3-pytest-xdist
			device-tree-compiler qemu-system-arm fuse3"
		kernel=yes
		;;
	test-all)
		packages="$packages debian-archive-keyring util-linux mount
			gcc-aarch64-linux-gnu make flex bison bc xz-utils
			gnuplot-nox fio dmsetup stress-ng git"
		peers=yes
		arm64=yes
		;;
	bench)
		packages="$packages $build $uml qemu-utils gnuplot-nox"
		peers=yes
		;;
	format)	packages="$packages clang-format" ;;
	tidy)	packages="$packages $build clang-tidy" ;;
	*)
		echo "setup.sh: no profile '$profile'" >&2
		exit 2
		;;
	esac
done

as_root=
if [ "$(id -u)" != 0 ]; then
	as_root=sudo
fi

update() {
	echo "setup: apt-get update"
	$as_root apt-get -qq update
}

missing=
for package in $packages; do
	case " $missing " in *" $package "*) continue ;; esac
	dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null |
		grep -qx installed || missing="$missing $package"
done

install() {
	# shellcheck disable=SC2086 # words are what is wanted
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y \
		--no-install-recommends -o Dpkg::Use-Pty=0 \
		-o DPkg::Lock::Timeout=300 install $missing </dev/null
}

if [ -n "$missing" ]; then
	if [ -n "$as_root" ] && ! command -v sudo >/dev/null; then
		echo "setup: missing, and neither root nor sudo to install" \
			"them:$missing" >&2
		exit 1
	fi
	echo "setup: installing$missing"
	# Lists that are absent or old are the usual reason for a failure.
	install || { update; install; }
fi

if [ -n "$kernel" ] && ! "$here/guest-kernel" --check >/dev/null; then
	echo "setup: fetching a kernel for the QEMU guests"
	"$here/guest-kernel" >/dev/null 2>&1 || {
		update
		"$here/guest-kernel" >/dev/null
	}
fi

if [ -n "$peers" ] && [ -x "$here/peers-root" ] &&
	! "$here/peers-root" --check >/dev/null 2>&1; then
	echo "setup: making a folder with newer peers (QEMU 11, virtiofsd, passt)"
	"$here/peers-root" >/dev/null
fi
if [ -n "$arm64" ] && ! "$here/arm64-guest" --check >/dev/null 2>&1; then
	echo "setup: making an arm64 guest (builds a kernel: some five minutes)"
	"$here/arm64-guest" >/dev/null
fi
