"""A picture of what a launch touches: each array as a grid of cells, the most expensive request made of it, and every thread's
reads and writes."""

import numpy as np

from minisl.kernels.cuda.emulator.trace import BANKS, READ, SECTOR, WARP, costs
from minisl.plot import finish, pyplot

ROWS, COLUMNS = 32, 96  # so much of an array is drawn
GLOBAL, SHARED = "#0072B2", "#D55E00"


def draw(launch, path, title=None):
    """Save the picture of a recorded `Launch` to `path`.

    Left, a cell for each element, in the colour of the thread of the first block that touches it first, dark to bright; a white
    dot marks what is written. Right, the request of a warp that costs most: which sector, or which bank, each lane asks for.
    Below, the reads and writes of each thread of that block. Raises ImportError where matplotlib is missing.
    """
    plt = pyplot()
    block = int(launch.accesses["block"].min(initial=1 << 30))
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    used = [k for k in range(len(launch.arrays)) if (launch.accesses["array"] == k).any()]
    figure = plt.figure(figsize=(10, 1.7 * len(used) + 2.4), layout="constrained")
    grid = figure.add_gridspec(len(used) + 1, 2, width_ratios=[3, 1], height_ratios=[*[1] * len(used), 0.9])
    for row, k in enumerate(used):
        left, right = (figure.add_subplot(grid[row, column]) for column in (0, 1))
        image = draw_array(left, launch, k, block, threads)
        draw_request(right, launch, k)
    bars = figure.add_subplot(grid[len(used), 0])
    draw_threads(bars, launch, block, threads)
    corner = figure.add_subplot(grid[len(used), 1])
    corner.axis("off")
    figure.colorbar(image, cax=corner.inset_axes([0, 0.75, 1, 0.12]), orientation="horizontal", label="thread of the block")
    figure.suptitle(title or f"{launch.kernel}: {launch.grid} blocks of {launch.block} threads; block {block} is shown",
                    fontsize=11)
    finish(plt, figure, path)


def draw_array(axes, launch, k, block, threads):
    array = launch.arrays[k]
    table = launch.accesses[(launch.accesses["array"] == k) & (launch.accesses["block"] == block)]
    size = array.bytes // array.item
    across = array.shape[1] if len(array.shape) == 2 else min(COLUMNS, size)
    cells, written = np.full((min(ROWS, -(-size // across)), min(COLUMNS, across)), np.nan), []
    for access in table[::-1]:  # the first one last, so that its colour stays
        for element in range(access["element"], access["element"] + max(1, access["size"] // array.item)):
            row, column = divmod(int(element), across)
            if row < len(cells) and column < cells.shape[1]:
                cells[row, column] = access["thread"]
                if access["use"] != READ:
                    written.append((column, row))
    image = axes.imshow(cells, cmap="viridis", vmin=0, vmax=max(1, threads - 1), aspect="auto", interpolation="nearest")
    if written:
        axes.plot(*np.array(written).T, ".", color="white", markersize=2, markeredgewidth=0)
    axes.set(xticks=[], yticks=[], facecolor="#eeeeee")
    seen = launch.summary(array.name)
    counts = ", ".join(f"{seen[use]:,} {use}" for use in ("reads", "writes", "atomics") if seen[use])
    cost = f"{seen['cycles']:,} bank cycles" if array.shared else f"{seen['moved']:,} sectors"
    place = " x ".join(map(str, array.shape)) + (", shared" if array.shared else ", global")
    axes.set_title(f"{array.name} ({place}): {counts}; {cost}, {seen['ideal']:,} would do", fontsize=8, loc="left",
                   color=SHARED if array.shared else GLOBAL)
    return image


def draw_request(axes, launch, k):
    """Lane against sector (global) or bank (shared) of the request that costs most."""
    array = launch.arrays[k]
    table, request = launch.of_array(array.name)[1], launch.requests(array.name)
    cost = costs(array, table, request)
    worst = table[request == int(cost.argmax())]
    lanes, words = worst["thread"] % WARP, worst["byte"] // 4
    place = words % BANKS if array.shared else worst["byte"] // SECTOR - worst["byte"].min() // SECTOR
    axes.plot(lanes, place, "o", markersize=2.5, color=SHARED if array.shared else GLOBAL)
    axes.set(xlim=(-1, WARP), xticks=(0, 8, 16, 24, 31), ylabel="bank" if array.shared else "sector")
    axes.set_ylim(-1, BANKS if array.shared else max(8, int(place.max()) + 1))
    axes.tick_params(labelsize=7)
    unit = ("cycle" if array.shared else "sector") + "s" * int(cost.max() > 1)
    axes.set_title(f"line {worst['line'][0]}: {int(cost.max())} {unit} for {len(worst)} lanes", fontsize=8, loc="left")


def draw_threads(axes, launch, block, threads):
    """Reads upwards, writes and atomics downwards, of each thread, shared on top of global."""
    table = launch.accesses[launch.accesses["block"] == block]
    shared = np.array([a.shared for a in launch.arrays])[table["array"]]
    up, down = np.zeros(threads), np.zeros(threads)
    for here, colour, name in ((~shared, GLOBAL, "global"), (shared, SHARED, "shared")):
        reads = np.bincount(table["thread"][here & (table["use"] == READ)], minlength=threads)
        writes = np.bincount(table["thread"][here & (table["use"] != READ)], minlength=threads)
        axes.bar(range(threads), reads, 1.0, bottom=up, color=colour, label=name)
        axes.bar(range(threads), -writes, 1.0, bottom=-down, color=colour)
        up, down = up + reads, down + writes
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xlabel="thread of the block", ylabel="writes | reads", xlim=(-0.5, threads - 0.5))
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=8)  # it lies on bars of its own colours
