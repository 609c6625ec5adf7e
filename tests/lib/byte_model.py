# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""What a disk should hold, as an array of bytes.

The programs that compare a disk with bytes that were treated the same ask
here whether it is right, and say in one way where it is not.
"""


class Mismatch(Exception):
    """A disk, or what is said of it, is not what it should be."""


def check(condition, text):
    if not condition:
        raise Mismatch(text)


def compare(what, got, want, start=0):
    """Both are bytes of the disk from start on, and must be the same."""
    if got == want:
        return
    check(len(got) == len(want),
          f"{what}: {len(got)} bytes, not {len(want)}")
    differ = [i for i, (a, b) in enumerate(zip(got, want)) if a != b]
    at = differ[0]
    raise Mismatch(f"{what}: byte {start + at} is {got[at]:#x}, not "
                   f"{want[at]:#x}; {len(differ)} of {len(got)} bytes differ")


def learn_trim(what, model, first, got, start=0):
    """After a trim each byte is what it was, or zero, and stays what it
    reads as.  got was read from byte first of the model on, whose own first
    byte is byte start of the disk."""
    old = model[first:first + len(got)]
    if got == old:
        return
    for i, (was, byte) in enumerate(zip(old, got)):
        check(byte in (was, 0),
              f"{what}: byte {start + first + i} is {byte:#x}, was "
              f"{was:#x}")
    model[first:first + len(got)] = got
