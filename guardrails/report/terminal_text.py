"""Text for a screen of a known width: how many cells it takes, cut to fit, and bars and curves made of blocks."""

import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from guardrails.cli import symbol

BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
FULL, PLAIN_FULL = "█", "#"
EMPTY, PLAIN_EMPTY = "░", "-"
DOTS, PLAIN_DOTS = "…", "..."


def count_cells(text: str) -> int:
    """How many cells of a terminal a text takes, rather too many than too few; control characters are not for here."""
    if text.isascii():
        return len(text)
    return sum(map(_count_cells, text))


def _count_cells(character: str) -> int:
    # A variation selector makes some terminals draw the letter before it wide.
    if unicodedata.combining(character) or unicodedata.category(character) == "Me":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int | None) -> str:
    """The text if it fits into ``width`` cells, else its beginning and dots. None: nothing is cut."""
    if width is None or count_cells(text) <= width:
        return text
    dots = symbol(DOTS, PLAIN_DOTS)[: max(width, 0)]
    room, kept = width - len(dots), ""
    for character in text:
        room -= _count_cells(character)
        if room < 0:
            break
        kept += character
    return kept + dots


def draw_bar(share: float, width: int) -> str:
    """A bar of ``width`` cells, filled by ``share`` of 0 to 1."""
    filled = int(min(max(share, 0.0), 1.0) * width)
    return symbol(FULL, PLAIN_FULL) * filled + symbol(EMPTY, PLAIN_EMPTY) * (width - filled)


def draw_curve(values: Sequence[float], width: int, rows: int = 1) -> list[str]:
    """Values as columns of blocks, oldest first, ``rows`` lines from the top; the least is the lowest block.

    Where there are more values than columns, a column is the mean of those that fall into it.
    """
    # Losses of a run that went astray may be as large as a number can be.
    columns = _thin_out([value / (1 << 32) for value in values], width)
    if not columns:
        return []
    blocks = symbol(BLOCKS, PLAIN_BLOCKS)
    least, largest = min(columns), max(columns)
    steps = len(blocks) * rows - 1
    scale = steps / (largest - least) if largest > least else 0.0
    heights = [1 + round((value - least) * scale) for value in columns]
    lines = []
    for row in reversed(range(rows)):
        below = row * len(blocks)
        line = "".join(blocks[min(height - below, len(blocks)) - 1] if height > below else " " for height in heights)
        lines.append(line.rstrip())
    return lines


def _thin_out(values: Sequence[float], width: int) -> list[float]:
    count = len(values)
    if count <= width:
        return list(values)
    edges = [count * column // width for column in range(width + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
