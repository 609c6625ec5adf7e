# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Root folders of Debian, in which a checkout is built and tested as it would
# be on another machine.  Whoever reads this in sets srcdir.

die ()
{
  echo "$(basename "$0" .sh): $*" >&2
  exit 1
}

# Print the mirror that Debian's main archive comes from here.
mirror ()
{
  local site
  # shellcheck disable=SC2016
  site=$(apt-get indextargets --format '$(SITE) $(ORIGIN) $(LABEL)' \
           'Created-By: Packages' | awk '$2 == "Debian" && $3 == "Debian" {
                                           print $1; exit }')
  [ "$site" ] || die "apt-get knows no archive of Debian's here"
  echo "$site"
}

# make_root SUITE ROOT: a minimal Debian, whose apt is configured as ours.
make_root ()
{
  local packages=ca-certificates site
  site=$(mirror) || exit 1
  if type -P mmdebstrap >/dev/null; then
    mmdebstrap --quiet --variant=apt --include="$packages" "$1" "$2" \
               "$site"
  elif type -P debootstrap >/dev/null; then
    debootstrap --variant=minbase --include="$packages" "$1" "$2" "$site"
  else
    die "neither mmdebstrap nor debootstrap is in PATH"
  fi
  cp /etc/resolv.conf "$2/etc/resolv.conf" 2>/dev/null || true
}

# copy_tree FOLDER: the files of the checkout, with what is not yet committed;
# of an unpacked tarball all.
copy_tree ()
{
  rm -rf "$1"
  mkdir -p "$1"
  if ! git -C "$srcdir" rev-parse 2>/dev/null; then
    cp -a "$srcdir/." "$1"
    return
  fi
  (cd "$srcdir" &&
     git ls-files -z --cached --others --exclude-standard |
       while IFS= read -rd '' file; do
         if [ -e "$file" ]; then printf '%s\0' "$file"; fi
       done | tar --null -cf - --no-recursion -T -) | tar -C "$1" -xf -
}

# inside ROOT COMMAND...: with processes and mounts of its own, which end with
# the command.
inside ()
{
  # shellcheck disable=SC2016
  unshare --mount --pid --fork --kill-child --propagation private \
          bash -ec '
    root=$1
    shift
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount --rbind /dev "$root/dev"
    exec chroot "$root" env -i HOME=/root LANG=C.UTF-8 CI="$CI" \
         MAKEFLAGS="$MAKEFLAGS" DEBIAN_FRONTEND=noninteractive \
         PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
         "$@"' inside "$@"
}
