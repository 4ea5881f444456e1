"""What a launch touched: every access as a row of a table, and what a GPU would have made of them, warp by warp.

A warp's 32 threads make an access together: those from the same place of the code that are each thread's k-th from there. Global
memory moves in sectors of 32 bytes, shared memory lies in 32 banks of 4-byte words, each of which gives one word at a time. Every
array is taken to begin with a sector, or in bank 0.
"""

from dataclasses import dataclass, field

import numpy as np

SECTOR, BANKS, WARP = 32, 32, 32
READ, WRITE, ATOMIC = range(3)
RECORD = np.dtype([("pc", "u8"), ("address", "u8"), ("block", "u4"), ("thread", "u4"), ("line", "i4"), ("use", "i4"),
                   ("size", "i4"), ("region", "i4")])
ACCESS = np.dtype([("block", "i4"), ("thread", "i4"), ("line", "i4"), ("use", "i4"), ("size", "i4"), ("array", "i4"),
                   ("element", "i8"), ("byte", "i8"), ("pc", "u8"), ("turn", "i4")])


@dataclass(frozen=True)
class Array:
    name: str
    address: int
    bytes: int
    shape: tuple
    item: int  # bytes of an element
    shared: bool


@dataclass
class Launch:
    """One recorded launch.

    accesses: a table in the order they were made, with block and thread (numbers), line, use (READ, WRITE, ATOMIC), size (bytes),
    array (arrays[array]), element and byte of it, pc, and turn: how often this thread had been at this place before.
    """

    kernel: str
    source: str
    grid: tuple
    block: tuple
    arrays: list
    accesses: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, kernel, source, grid, block, arrays, raw, lines):
        table = np.zeros(len(raw), ACCESS)
        for name in ("block", "thread", "line", "use", "size", "pc"):
            table[name] = raw[name]
        for k, a in reversed(list(enumerate(arrays))):  # an array given twice is known by its first name
            inside = (raw["address"] >= a.address) & (raw["address"] < a.address + a.bytes)
            table["array"][inside] = k
            table["byte"][inside] = raw["address"][inside] - np.uint64(a.address)
            table["element"][inside] = table["byte"][inside] // a.item
        places, which = np.unique(table["pc"], return_inverse=True)
        found = np.array([*lines([p for p in places if p]), 0])
        unknown = table["line"] == 0
        table["line"][unknown] = found[which[unknown] - int((places == 0).any())]
        table["turn"] = turns(table)
        return cls(kernel, source, grid, block, arrays, table)

    def of_array(self, name):
        """(the array, its accesses). Raises ValueError for a name that the launch does not have."""
        for k, a in enumerate(self.arrays):
            if a.name == name:
                return a, self.accesses[self.accesses["array"] == k]
        raise ValueError(f"{self.kernel} has no array {name}; it has {', '.join(a.name for a in self.arrays)}")

    def requests(self, name):
        """For each access of `of_array(name)`, the number of the request it is part of: what a warp asks for together."""
        _, table = self.of_array(name)
        return numbered(table["block"], table["thread"] // WARP, table["line"], table["use"], table["pc"], table["turn"])

    def summary(self, name):
        """What was asked of an array: "reads", "writes" and "atomics" of threads, "requests" of warps; "moved" sectors of global
        memory, or "cycles" of shared memory's banks; "ideal", as many as would do if the same words lay side by side."""
        array, table = self.of_array(name)
        request = self.requests(name)
        found = {use: int((table["use"] == k).sum()) for k, use in enumerate(("reads", "writes", "atomics"))}
        moved, ideal = int(costs(array, table, request).sum()), int(least(array, table, request).sum())
        return found | {"requests": len(np.unique(request)), "cycles" if array.shared else "moved": moved, "ideal": ideal}


def numbered(*columns):
    """A number for each row, the same for rows that are the same in all columns."""
    number = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        _, which = np.unique(column, return_inverse=True)
        number = number * (int(which.max(initial=0)) + 1) + which
        _, number = np.unique(number, return_inverse=True)
    return number


def turns(table):
    """For each access, how many its thread has made before from the same place."""
    place = numbered(table["block"], table["thread"], table["line"], table["use"], table["pc"])
    order = np.argsort(place, kind="stable")
    found = np.empty(len(table), np.int32)
    found[order] = np.arange(len(table)) - np.searchsorted(place[order], place[order])
    return found


def costs(array, table, request):
    """What each request costs: sectors of 32 bytes that it touches, or cycles in which the banks serve it.

    Each bank gives a word a cycle; of threads that ask for 8 or 16 bytes a half or a quarter of the warp is served at a time.
    """
    if not array.shared:
        asked, word = words(table, request)
        _, first = np.unique(numbered(asked, word * 4 // SECTOR), return_index=True)
        return np.bincount(asked[first], minlength=int(request.max(initial=-1)) + 1)
    part = numbered(request, parts(table))
    asked, word = words(table, part)
    load = numbered(asked, word % BANKS)
    busiest = np.zeros(int(part.max(initial=-1)) + 1, np.int64)
    np.maximum.at(busiest, asked, np.bincount(load)[load])
    request_of = np.zeros(len(busiest), np.int64)
    request_of[part] = request
    return np.bincount(request_of, busiest, minlength=int(request.max(initial=-1)) + 1).astype(np.int64)


def least(array, table, request):
    """What each request would cost if the words it asks for lay side by side."""
    if array.shared:
        _, first = np.unique(numbered(request, parts(table)), return_index=True)
        return np.bincount(request[first])
    return -(-np.bincount(words(table, request)[0]) * 4 // SECTOR)


def parts(table):
    """Which half or quarter of its warp an access of 8 or 16 bytes is served with."""
    return table["thread"] % WARP // np.maximum(1, 4 * BANKS // np.maximum(table["size"], 4))


def words(table, request):
    """(request, 4-byte word): every distinct word that a request touches."""
    first, count = table["byte"] // 4, -(-table["size"] // 4)
    asked = np.concatenate([request[count > k] for k in range(4)])
    word = np.concatenate([first[count > k] + k for k in range(4)])
    _, kept = np.unique(numbered(asked, word), return_index=True)
    return asked[kept], word[kept]
