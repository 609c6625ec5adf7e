#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""See that in the sources arrows point down only.

    arrows.py SRCDIR BUILDDIR

A file takes what it includes, and every function and variable that its
object needs and another file's object defines, whether or not a header says
so.  Each of these is an arrow.  One that points up, or sideways into a room
that must not be known, is named, and so are the shortest circles of files,
headers of nbdkit where they do not belong, and files that have grown too
long.  Exit status 1 if there was anything to name.
"""

import collections
import os
import re
import subprocess
import sys

TREES = ("common", "plugins", "filters", "tools")

SOURCE_LINES = 700
HEADER_LINES = 200

# The rooms, lower ones first.  Rooms of one line do not know each other.
ROOMS = (
    ("common/utils",),
    ("common/request",),
    ("common/node",),
    ("common/control",),
    ("common/qed", "common/writelog"),
    ("common/module", "common/tool"),
    ("plugins/*", "filters/*", "tools/*"),
)

# The order within a room, again lower ones first: a folder, or the names of
# files without their ends.  None stands for all that have no other place.
# What shares a line has no order, but what is in brackets does not know the
# other brackets of its line.
ORDER = {
    "common/qed": (
        ("format",),
        ("image/",),
        ("io/",),
        ("repair/",),
        ("names", "guard", "open", "chain"),
        (None,),
        ("buffer",),
    ),
    "common/writelog": (
        ("format",),
        ("reader",),
        (["record/"], ["moments/"]),
        ("explore/",),
        (None,),
    ),
    "filters/replication": (
        (None,),
        (["primary/"], ["secondary/"]),
        ("replication", "params", "commands", "holding", "side", "requests"),
    ),
}

# Where nbdkit is known.
MODULES = ("plugins/", "filters/", "common/module/")


class Place:
    """Where a file stands: its room, and its line within the room."""

    def __init__(self, name):
        self.name = name
        folder = name.split("/")[:2]
        self.room = "/".join(folder)
        self.layer = next(
            (i for i, rooms in enumerate(ROOMS)
             if self.room in rooms or folder[0] + "/*" in rooms), None)
        self.line = self.side = None
        # What a room shows to others belongs to all of its files.
        self.shown = name == f"{self.room}/{folder[-1]}.h"
        inner = os.path.splitext(name[len(self.room) + 1:])[0]
        rest = None
        for i, line in enumerate(ORDER.get(self.room, ())):
            for part in line:
                for what in part if isinstance(part, list) else [part]:
                    if what is None:
                        rest = i
                    elif inner == what or \
                            what.endswith("/") and inner.startswith(what):
                        self.line = i
                        self.side = what if isinstance(part, list) else None
        if self.line is None:
            self.line = rest

    def may_take(self, other):
        """None, or why this file may not take something of the other."""
        if other.layer is None or self.layer is None:
            return "is in a room that the order does not know"
        if self.room != other.room:
            if self.layer < other.layer:
                return "is in a higher room"
            if self.layer == other.layer:
                return "is in a room that must not be known"
        elif not other.shown and not self.shown and self.line is not None:
            if self.line < other.line:
                return "is higher in the room"
            if self.line == other.line and self.side != other.side:
                return "is on a side that must not be known"
        return None


def written_files(srcdir):
    names = []
    for tree in TREES:
        for folder, _, files in os.walk(os.path.join(srcdir, tree)):
            names += [os.path.relpath(os.path.join(folder, name), srcdir)
                      for name in files if name.endswith((".c", ".h"))]
    return sorted(names)


def includes(srcdir, name):
    """(name as written, whether in quotes) of each header."""
    with open(os.path.join(srcdir, name), encoding="utf-8") as f:
        return [(m[2], m[1] == '"') for m in re.finditer(
            r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', f.read(), re.M)]


def source_of(path, sources):
    """The source of an object.  The name of the target may stand before its
    own, with a "-" between them."""
    folder, base = os.path.split(path)
    folder = re.sub(r"/?\.libs$", "", folder)
    base = base[:-2]
    while True:
        name = f"{folder}/{base}.c"
        if name in sources:
            return name
        if "-" not in base:
            return None
        base = base.split("-", 1)[1]


def newest_objects(builddir, sources):
    """The object of each source: the newest, if it was built for several
    targets."""
    found = {}
    for tree in TREES:
        for folder, _, files in os.walk(os.path.join(builddir, tree)):
            for base in files:
                path = os.path.join(folder, base)
                if not base.endswith(".o"):
                    continue
                source = source_of(os.path.relpath(path, builddir), sources)
                if source and (source not in found or os.path.getmtime(path) >
                               os.path.getmtime(found[source])):
                    found[source] = path
    return found


def symbols(objects):
    """Of each source the symbols that its object defines, and needs."""
    if not objects:
        return {}, {}
    by_path = {path: source for source, path in objects.items()}
    output = subprocess.run(["nm", "-A", "-P", "-g", *by_path], check=True,
                            capture_output=True, text=True).stdout
    defined = collections.defaultdict(set)
    needed = collections.defaultdict(set)
    for line in output.splitlines():
        path, rest = line.split(": ", 1)
        symbol, kind = rest.split()[:2]
        (needed if kind in "Uw" else defined)[by_path[path]].add(symbol)
    return defined, needed


def definer(symbol, user, owners):
    """Who defines what the user needs.  Programs and modules each have
    their own "main" and the like, so the nearest is meant."""
    near = os.path.dirname(user) + "/"
    room = "/".join(user.split("/")[:2]) + "/"
    return min(owners.get(symbol, ()), default=None,
               key=lambda name: (not name.startswith(near),
                                 not name.startswith(room),
                                 not name.startswith("common/"), name))


def circles(arrows):
    """The shortest circle through each file that is in one, each once."""
    seen = set()
    for start in sorted(arrows):
        came_from = {start: None}
        queue = collections.deque([start])
        while queue:
            name = queue.popleft()
            if start in arrows.get(name, ()):
                circle = [name]
                while came_from[circle[-1]]:
                    circle.append(came_from[circle[-1]])
                circle.reverse()
                if not seen.intersection(circle):
                    yield circle
                seen.update(circle)
                break
            for other in sorted(arrows.get(name, ())):
                if other not in came_from:
                    came_from[other] = name
                    queue.append(other)


def main(srcdir, builddir):
    complaints = []
    files = written_files(srcdir)
    sources = {name for name in files if name.endswith(".c")}
    headers = set(files) - sources
    places = {name: Place(name) for name in files}

    # What each file takes of each other.
    arrows = collections.defaultdict(lambda: collections.defaultdict(list))
    for name in files:
        for header, quoted in includes(srcdir, name):
            if header.startswith("nbdkit-") and not name.startswith(MODULES):
                complaints.append(f"{name} takes <{header}>, and is not part "
                                  "of a module")
            if not quoted:
                continue
            # The one root has two names.
            other = next((h for h in (f"common/{header}", header)
                          if h in headers), None)
            if other:
                arrows[name][other].append(f'"{header}"')
            else:
                complaints.append(f"{name} takes \"{header}\", and no header "
                                  "has this name from the top or common/")

    objects = newest_objects(builddir, sources)
    for name in sorted(sources - set(objects)):
        complaints.append(f"{name} has no object: build the tree first")
    defined, needed = symbols(objects)
    owners = collections.defaultdict(set)
    for name, names in defined.items():
        for symbol in names:
            owners[symbol].add(name)
    for name, names in sorted(needed.items()):
        for symbol in sorted(names):
            other = definer(symbol, name, owners)
            if other and other != name:
                arrows[name][other].append(symbol)
            elif symbol.startswith("nbdkit_") and \
                    not name.startswith(MODULES):
                complaints.append(f"{name} takes {symbol}, and is not part of "
                                  "a module")

    for name, others in sorted(arrows.items()):
        for other, what in sorted(others.items()):
            why = places[name].may_take(places[other])
            if why:
                complaints.append(
                    f"{name} takes {', '.join(what)} of {other}, which {why}")
    for circle in circles(arrows):
        complaints.append("a circle: " + "; ".join(
            f"{name} takes {', '.join(arrows[name][other])} of {other}"
            for name, other in zip(circle, circle[1:] + circle[:1])))

    for name in files:
        with open(os.path.join(srcdir, name), "rb") as f:
            lines = len(f.readlines())
        most = SOURCE_LINES if name in sources else HEADER_LINES
        if lines > most and not places[name].shown:
            complaints.append(f"{name} has {lines} lines, more than {most}")

    for complaint in complaints:
        print(complaint)
    return 1 if complaints or not files else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
