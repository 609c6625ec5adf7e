# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# What programs that manage virtual machines call qemu-img for, with a format
# that has backing files: their command lines, as their manuals, sources and
# logs show them, with qed for that format.  Each script runs twice, with the
# real qemu-img and with qed-img under that name first in PATH, and must print
# the same and leave images that read the same.

load ../lib/qed-img-functions

# script NAME: run it in a folder of its own.  What it prints goes to NAME.out,
# without what differs on purpose: how much space images take.
script ()
{
  local name=$1 path=$PATH
  if [ "$name" = ours ]; then
    mkdir -p bin
    ln -sf "$(type -P qed-img)" bin/qemu-img
    path=$tmp/bin:$PATH
  fi
  mkdir "$name"
  (
    cd "$name" || exit
    set -e
    export PATH=$path LC_ALL=C
    head -c 3M /dev/zero | tr '\0' r >base.raw
    truncate -s 16M base.raw
    steps
  ) >"$name.raw-out" 2>&1 || fail "$name: $(cat "$name.raw-out")"
  sed -e "s|$tmp/$name|FOLDER|g" -e '/"actual-size"/d' -e '/^disk size:/d' -e '/"dirty-flag"/d' \
      <"$name.raw-out" | in_old_words >"$name.out"
}

# compare_scripts: both ways, and compare what they leave.
compare_scripts ()
{
  local image format
  script qemu
  script ours
  diff -u qemu.out ours.out
  diff <(cd qemu && find . | sort) <(cd ours && find . | sort)
  while read -r image; do
    format=raw
    if [ "$(head -c 3 "qemu/$image")" = QED ]; then format=qed; fi
    echo "$image"
    qemu-img compare -U -q -f "$format" -F "$format" \
             "qemu/$image" "ours/$image"
    if [ "$format" = qed ]; then
      qemu-img check -q -f qed "ours/$image"
      diff <(describe_header qemu "$image" | sed "s|$tmp/qemu|FOLDER|") \
           <(describe_header ours "$image" | sed "s|$tmp/ours|FOLDER|")
    fi
  done < <(cd qemu && find . -type f \( -name '*.qed' -o -name '*.raw' \))
}

# fill IMAGE COMMAND...: what a guest does meanwhile.
fill ()
{
  local image=$1 command args=()
  shift
  for command in "$@"; do args+=(-c "$command"); done
  qemu-io -f qed "${args[@]}" "$image" >/dev/null
}

@test "libguestfs and virt-v2v: probe, describe, make overlays, measure, copy" {
  steps ()
  {
    qemu-img --help | grep -qE -- '\binfo\b.*-U\b'
    qemu-img create -f qed -o backing_file=base.raw,backing_fmt=raw over.qed
    qemu-img create -q -f qed -b "$PWD/base.raw" -F raw abs.qed 20M
    fill over.qed 'write -P 1 0 1M' 'write -P 2 8M 64k'
    qemu-img info --output json over.qed
    qemu-img info -U --output json over.qed
    # The image is opened, and its name is that of a descriptor.
    (
      limit_memory 1000000
      ulimit -t 10
      qemu-img info -U --output json -f qed /dev/fd/9 9<over.qed |
        jq '.format, .["virtual-size"], .["backing-filename"]'
    )
    qemu-img info --output=json --backing-chain over.qed
    qemu-img map -f qed --output json over.qed
    qemu-img convert -f qed -O raw over.qed flat.raw
    qemu-img convert -p -n -f qed -O raw over.qed flat.raw | tail -c 1 | od -c
    qemu-img check -f qed over.qed
    qemu-img create -f qed new.qed 1073741824
  }
  compare_scripts
}

@test "libvirt: volumes, clones, resizing and offline snapshots" {
  steps ()
  {
    umask 0
    qemu-img create -f qed vol.qed 16384K
    qemu-img create -f qed -o backing_fmt=raw -b base.raw vol2.qed 20480K
    qemu-img create -f qed -F raw -b base.raw vol3.qed
    stat -c %a vol.qed vol2.qed
    fill vol2.qed 'write -P 1 0 1M' 'write -P 2 18M 64k'
    qemu-img convert -f qed -O qed vol2.qed clone.qed
    qemu-img convert -f raw -O qed base.raw clone2.qed
    qemu-img convert -f qed -O qed -o backing_fmt=raw,backing_file=base.raw \
             vol2.qed clone3.qed
    qemu-img convert -f qed -O raw vol2.qed clone.raw
    qemu-img resize -f qed vol.qed 33554432
    qemu-img resize -f qed vol2.qed 41943040
    # An external snapshot of a domain that is off.
    qemu-img create -f qed -o backing_fmt=qed,backing_file=vol2.qed snap.qed
    fill snap.qed 'write -P 3 2M 64k'
    qemu-img info --output=json snap.qed
    qemu-img rebase -u -f qed -F qed -b vol2.qed snap.qed
    qemu-img commit -f qed -d snap.qed
  }
  compare_scripts
}

@test "vdsm (oVirt): past the page cache, with progress" {
  steps ()
  {
    qemu-img info --output json -f qed <(:) 2>/dev/null || echo no image
    qemu-img create -f qed top.qed 16777216
    qemu-img create -f qed -u -b base.raw -F raw mid.qed 16777216
    qemu-img create -f qed -o preallocation=off leaf.qed 16777216
    fill mid.qed 'write -P 1 0 1M' 'write -P 2 8M 64k'
    qemu-img info --output json -f qed mid.qed
    qemu-img info --output json -U -f qed --backing-chain mid.qed
    qemu-img rebase -t none -T none -u -f qed -F qed -b mid.qed leaf.qed
    fill leaf.qed 'write -P 3 1M 1M' 'write -z 8M 64k'
    qemu-img check --output json -f qed leaf.qed
    qemu-img map --output json -f qed leaf.qed
    qemu-img convert -p -t none -T none -f qed leaf.qed -O raw copy.raw \
      >progress
    tr -cd '\r' <progress | head -c 1 | od -c
    truncate -s 16M there.raw
    qemu-img convert -p -t none -T none -f qed leaf.qed -O raw -W -n there.raw \
      >progress
    qemu-img convert -p -t none -T none -f qed leaf.qed -O raw -W -n \
             --target-is-zero there.raw >progress
    qemu-img convert -p -t none -T none -f raw copy.raw -O qed \
             -o cluster_size=64k copy.qed >progress
    qemu-img commit -p -t none -b mid.qed -d -f qed leaf.qed >progress
    tail -n 1 progress
    qemu-img rebase -t none -T none -p -f qed -F raw -b base.raw leaf.qed \
      >progress
    rm progress
    qemu-img resize -f qed leaf.qed 33554432
    qemu-img amend -f qed leaf.qed 2>/dev/null || echo refused
  }
  compare_scripts
}

@test "nova and cinder (OpenStack): options behind names, too" {
  steps ()
  {
    qemu-img --version | grep -oE '^qemu-img version [0-9]' | tr 1-9 x
    env LC_ALL=C LANG=C qemu-img info base.qed --force-share --output=json \
        2>/dev/null || echo no image
    qemu-img create -f qed -o \
      "backing_file=$PWD/base.raw,backing_fmt=raw,cluster_size=64K" disk.qed
    qemu-img create -f qed -o backing_file=base.raw,backing_fmt=raw disk2.qed
    env LC_ALL=C LANG=C qemu-img info disk2.qed --force-share --output=json \
        -f qed
    qemu-img resize -f qed disk.qed 33554432
    fill disk2.qed 'write -P 1 0 1M' 'write -P 2 15M 64k'
    qemu-img convert -t writeback -O qed -f qed disk2.qed snap.qed
    qemu-img convert -t none -O raw -f qed disk2.qed disk2.raw
    qemu-img convert -O raw -t none -f qed disk2.qed disk3.raw
    qemu-img rebase -f qed -b "" disk.qed
    # Chains of volume snapshots on a shared file system.
    qemu-img create -f qed -o backing_file=disk2.qed,backing_fmt=qed s1.qed
    qemu-img create -f qed -o backing_file=s1.qed,backing_fmt=qed s2.qed 17M
    fill s2.qed 'write -P 3 2M 64k' 'write -P 4 16M 64k'
    qemu-img rebase -u -f qed -b s1.qed s2.qed -F qed
    qemu-img info -f qed --output=json --force-share s2.qed
    qemu-img commit -f qed -d s2.qed
    qemu-img rebase -u -f qed -b disk2.qed -F qed s1.qed
    qemu-img commit -d -f qed s1.qed
    qemu-img info --output=json --backing-chain -f qed s2.qed
  }
  compare_scripts
}

@test "virt-install, Packer, Proxmox and people: images from templates" {
  steps ()
  {
    qemu-img create -f qed disk.qed 20G
    qemu-img create -q -f qed disk2.qed 1073741824
    qemu-img create -f qed -o nocow=on disk3.qed 33554432K
    qemu-img create -f qed -b base.raw -F raw clone.qed 40960M
    qemu-img convert -O qed -f raw base.raw template.qed
    qemu-img convert -S 4k -W -m 16 -f raw -O qed base.raw fast.qed
    qemu-img create -F qed -b template.qed -f qed guest.qed
    fill guest.qed 'write -P 5 1M 1M'
    qemu-img resize -f qed guest.qed +16M
    qemu-img info guest.qed
    qemu-img info --backing-chain guest.qed
    qemu-img rebase -f qed -F raw -b base.raw guest.qed
    qemu-img rebase -f qed -p -b '' guest.qed >/dev/null
    qemu-img check -r all guest.qed | head -n 1
    qemu-img convert -p -f qed -O raw guest.qed guest.raw >/dev/null
    qemu-img convert -f qed -O raw -o preallocation=falloc guest.qed full.raw
    stat -c %s full.raw
  }
  compare_scripts
}
