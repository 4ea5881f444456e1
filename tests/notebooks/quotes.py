"""Numbers in the text of notebooks, and where they come from."""

import io
import re
import tokenize

ASIDE = re.compile(
    r"^```.*?^```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|<[^>]*>|\]\([^)]*\)|https?://\S+|^\s*\d+\.(?= )|arXiv[: ]\d+\.\d+"
    r"|(?:[Ss]ections?|[Tt]ables?|[Ff]igures?|[Aa]lgorithms?|[Pp]ropositions?|[Ee]quations?|[Ee]xercises?|[Nn]otebooks?|NeurIPS|Python)"
    r" \d[\d.]*(?:(?: and | to |, )\d+)*", re.M | re.S)
NUMBER = re.compile(r"(?<![\w.])[-−+]?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][-+]?\d+)?(?P<unit> ?%)?")
SMALL = 10  # words like 2 or 8, that nobody measures


def value(text):
    return float(text.replace(",", "").replace("−", "-").rstrip(" %"))


def in_prose(text):
    """(as written, value, half a unit of its last digit) of every number of a markdown cell that must come from somewhere."""
    text = ASIDE.sub(" ", text)
    for match in NUMBER.finditer(text):
        written = match.group().strip()
        digits = re.split("[eE]", written.rstrip(" %"))
        decimals = len(digits[0].partition(".")[2]) - (int(digits[1]) if len(digits) > 1 else 0)
        number, half = value(written), 0.5 * 10.0**-decimals
        if match["unit"]:
            yield written, number / 100, half / 100
        elif not (number == int(number) and abs(number) <= SMALL and "." not in written):
            yield written, number, half


def in_outputs(cell):
    """The numbers that a code cell printed or returned."""
    return [n for output in cell.outputs for n in in_text(text_of(output))]


def text_of(output):
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {})
    if "text/html" in data and "<script" not in data["text/html"]:
        return re.sub(r"<style.*?</style>|<[^>]*>", " ", data["text/html"], flags=re.S)
    text = data.get("text/plain", "")
    return "" if re.match(r"<[\w. ]+( at 0x\w+)?>|<Figure", text) else text


def in_text(text):
    return [value(m.group()) / (100 if m["unit"] else 1) for m in NUMBER.finditer(text)]


def in_source(cell):
    """The numbers that a code cell's code contains, its comments and strings not counted."""
    code = re.sub(r"^\s*[%!].*$", "", cell.source, flags=re.M)
    return [float(token.string.replace("_", "")) for token in tokenize.generate_tokens(io.StringIO(code).readline)
            if token.type == tokenize.NUMBER and not re.search(r"[jxobXOB]", token.string)]


def tags(cell):
    return cell.metadata.get("tags", [])


def unfounded(notebook):
    """Of every number in the text that no cell above it computed or contains: (cell, the number as written).

    What answers of exercises compute counts for their own cell. What a cell tagged "timing" printed counts for nothing.
    """
    known, missing = [], []
    cells = notebook.cells
    for at, cell in enumerate(cells):
        if cell.cell_type == "code":
            known += in_source(cell) + ([] if "timing" in tags(cell) else in_outputs(cell))
            continue
        own = []
        for answer in cells[at + 1:]:
            if "answer" not in tags(answer):
                break
            own += in_source(answer) + in_outputs(answer)
        for written, number, half in in_prose(cell.source):
            if not any(abs(abs(v) - abs(number)) <= half * 1.0001 for v in known + own):
                missing.append((at, written))
    return missing


def stale(committed, fresh, trained=0.05):
    """Lines about cells that now print other numbers than were committed, more than their tags allow, or draw other pictures.

    trained: what cells with this tag may be off by, relative.
    """
    lines = []
    for at, (old, new) in enumerate(zip(committed.cells, fresh.cells, strict=True)):
        if old.cell_type != "code":
            continue
        pictures = [[("image/png" in o.get("data", {})) for o in c.outputs if o.output_type != "stream"] for c in (old, new)]
        if pictures[0] != pictures[1]:
            lines.append(f"cell {at}: {sum(pictures[0])} pictures committed, {sum(pictures[1])} drawn")
        if "timing" in tags(old):
            continue
        was, now = in_outputs(old), in_outputs(new)
        near = trained if "trained" in tags(old) else 1e-3
        if len(was) != len(now):
            if "trained" not in tags(old):
                lines.append(f"cell {at}: {len(was)} numbers committed, {len(now)} printed")
        elif far := [(a, b) for a, b in zip(was, now) if abs(a - b) > near * max(abs(a), abs(b)) + 1e-12]:
            lines.append(f"cell {at}: {far[0][0]:g} committed, {far[0][1]:g} printed")
    return lines
