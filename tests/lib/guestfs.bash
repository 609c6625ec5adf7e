# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Settings for whatever starts a virtual machine, to be sourced: guestfish
# takes them from the environment, and "qemu-system-x86_64 -accel
# $qemu_accel" is to be used elsewhere.  Where KVM does not work, machines
# are emulated.

# KVM works if a machine runs with it.  /dev/kvm may be there and QEMU start
# with it, and yet guests crawl (where the host emulates KVM itself), or their
# kernels hang.  So two guests have to answer: a boot sector, which is a matter
# of a tenth of a second, and then the kernel that libguestfs would boot, which
# panics at once for want of a disk.  Emulation is never wrong, only slower.
kvm_works ()
{
  [ -w /dev/kvm ] && boot_sector_runs kvm 1 && kernel_boots kvm 20
}

# boot_sector_runs ACCELERATOR SECONDS: within this time a boot sector writes
# 16 to the port of isa-debug-exit, which ends QEMU with status 2 * 16 + 1.
boot_sector_runs ()
{
  local sector status=0
  sector=$(mktemp) || return
  # mov $0x10, %al; out %al, $0xf4; hlt; jmp to the hlt
  { printf '\xb0\x10\xe6\xf4\xf4\xeb\xfd'
    head -c 503 /dev/zero
    printf '\x55\xaa'
  } >"$sector"
  try_machine "$1" "$2" -device isa-debug-exit,iobase=0xf4,iosize=1 \
      -drive "file=$sector,format=raw,if=ide,snapshot=on" >/dev/null ||
    status=$?
  rm -f "$sector"
  [ "$status" -eq 33 ]
}

# kernel_boots ACCELERATOR SECONDS
kernel_boots ()
{
  local kernel
  for kernel in /boot/vmlinu*; do
    if [ -r "$kernel" ]; then
      try_machine "$1" "$2" -m 512 -serial stdio -kernel "$kernel" \
          -append "panic=-1 console=ttyS0" | grep "Kernel panic" >/dev/null
      return
    fi
  done
  return 1
}

try_machine ()
{
  local accelerator=$1 seconds=$2
  shift 2
  ( ulimit -c 0
    exec timeout -k 1 "$seconds" qemu-system-x86_64 -accel "$accelerator" \
      -cpu max -nodefaults -display none -no-reboot "$@"
  ) 2>/dev/null </dev/null
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
