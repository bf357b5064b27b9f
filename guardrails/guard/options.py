"""Options and operands of a command, as getopt reads them."""

from collections.abc import Iterable


def options_of(
    argv: list[str], valued: str = "", long_valued: Iterable[str] = ()
) -> tuple[set[str], dict[str, str], list[str]]:
    """The flags, the options with a value (letters in ``valued``; long names) and the operands of a command."""
    flags: set[str] = set()
    values: dict[str, str] = {}
    operands: list[str] = []
    rest = iter(argv[1:])
    for word in rest:
        if word == "--":
            operands.extend(rest)
        elif word.startswith("--") and len(word) > 2:
            name, equals, value = word.partition("=")
            if equals:
                values[name] = value
            elif name in long_valued:
                values[name] = next(rest, "")
            flags.add(name)
        elif word.startswith("-") and len(word) > 1:
            for position, letter in enumerate(word[1:], 2):
                flags.add(f"-{letter}")
                if letter in valued:
                    values[f"-{letter}"] = word[position:] or next(rest, "")
                    break
        else:
            operands.append(word)
    return flags, values, operands
