# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Settings for whatever starts a virtual machine, to be sourced: guestfish
# takes them from the environment, and "qemu-system-x86_64 -accel
# $qemu_accel" is to be used elsewhere.  Where KVM does not work, machines
# are emulated.

# /dev/kvm may be there and yet not run a machine, so try one.
kvm_works ()
{
  if ! [ -w /dev/kvm ]; then
    return 1
  fi
  ( ulimit -c 0
    echo quit | timeout 20 qemu-system-x86_64 -accel kvm -cpu max \
                     -nodefaults -display none -monitor stdio
  ) >/dev/null 2>&1
}

if [ -z "${qemu_accel:-}" ]; then
  if kvm_works; then
    qemu_accel=kvm
  else
    qemu_accel=tcg
  fi
fi
export qemu_accel

export LIBGUESTFS_BACKEND=direct
if [ "$qemu_accel" = tcg ]; then
  export LIBGUESTFS_BACKEND_SETTINGS=force_tcg
fi
