# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# A real guest makes a file system on a served QED disk.

load ../lib/qed-functions

@test "guestfish makes an ext4 over NBD and reads it from the .qed file" {
  require_tool guestfish e2fsck
  create 256M
  # Something that can be compared afterwards.
  head -c 20M /dev/urandom >random
  start_nbdkit qed disk.qed
  guestfish --format=raw -a "nbd:///?socket=$sock" <<'EOF'
run
mkfs ext4 /dev/sda
mount-options discard /dev/sda /
mkdir /folder
upload random /folder/random
upload random /gone
write /hello "hello\n"
sync
rm /gone
fstrim /
umount /
EOF
  stop_nbdkit
  assert_clean disk.qed

  guestfish --ro --format=qed -a disk.qed -m /dev/sda <<'EOF'
download /folder/random back
download /hello hello
EOF
  assert_same random back
  assert_equal "$(cat hello)" hello

  qemu-img convert -f qed -O raw disk.qed disk.raw
  run e2fsck -fn disk.raw
  assert_success
}
