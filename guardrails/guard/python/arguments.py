"""What ``argparse``, and those that read a function's parameters, make of a command line."""

from guardrails.guard.python.values import ANY, NONE, Call, Made, Seq, Value, lift, texts, union

TAKES_MANY = ("+", "*", "...", "A...")


class Option:
    """One ``add_argument``."""

    __slots__ = ("default", "flags", "is_switch", "name", "switched", "takes_many", "takes_none")

    def __init__(self, call: Call) -> None:
        names = [name for value in call.args for name in texts(value)[:1]]
        self.flags = [name for name in names if name.startswith("-")]
        longest = max(self.flags, key=len) if self.flags else (names or [""])[0]
        self.name = texts(call.keywords["dest"])[0] if "dest" in call.keywords else _as_name(longest)
        action = texts(call.get(-1, "action"))[0]
        self.is_switch = action in ("store_true", "store_false", "store_const", "count", "version", "help")
        self.switched: Value = lift(action != "store_false")
        if action == "store_const":
            self.switched = call.get(-1, "const")
        count = texts(call.get(-1, "nargs"))[0]
        self.takes_many = count in TAKES_MANY or action in ("append", "extend") or count.isdigit()
        self.takes_none = count in ("?", "*")
        missing = lift(action == "store_false") if action in ("store_true", "store_false") else NONE
        self.default = call.keywords.get("default", missing)


def parse_arguments(parser: Made, words: list[Value]) -> dict[str, Value]:
    """The attributes of the namespace; what is not given has its default, a positional that is missing is unknown."""
    known = [Option(call) for call in parser.options]
    found = {**{option.name: option.default for option in known}, **parser.defaults}
    flags = {flag: option for option in known for flag in option.flags}
    given: list[Value] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, value = texts(word)[0].partition("=")
        option = flags.get(flag)
        if option is None:
            given.extend([word] if not flag.startswith("-") else [])
            if flag in parser.children:
                found.update(parse_arguments(parser.children[flag], rest))
                break
        elif option.is_switch:
            found[option.name] = option.switched
        elif equals:
            found[option.name] = (value,)
        elif option.takes_many:
            found[option.name] = (Seq(_take(rest)),)
        elif rest:
            found[option.name] = rest.pop(0)
    _place([option for option in known if not option.flags], given, found)
    return found


def _take(rest: list[Value]) -> list[Value]:
    taken: list[Value] = []
    while rest and not texts(rest[0])[0].startswith("-"):
        taken.append(rest.pop(0))
    return taken


def _place(positionals: list[Option], given: list[Value], found: dict[str, Value]) -> None:
    for left, option in zip(range(len(positionals) - 1, -1, -1), positionals, strict=True):
        if option.takes_many:
            count = max(0, len(given) - left)
            found[option.name] = (Seq(given[:count]),)
            given = given[count:]
        elif given:
            found[option.name], given = given[0], given[1:]
        elif not option.takes_none:
            found[option.name] = ANY


def parse_parameters(parameters: dict[str, Value | None], words: list[Value]) -> dict[str, Value]:
    """What click, typer and the like give parameters (with their defaults): ``--name VALUE``, else words in order."""
    shown = {texts(word)[0].partition("=")[0] for word in words}
    parser = Made("parser")
    names: list[str] = []
    for name, default in parameters.items():
        flags = {f"--{name}", f"--{name.replace('_', '-')}"} & shown
        if flags:
            action = ("store_true",) if default and isinstance(default[0], bool) else ("store",)
            parser.options.append(Call([(flag,) for flag in flags], {"action": action}))
        elif default is None:
            parser.options.append(Call([(name,)]))
        names.extend([name] if flags or default is None else [])
    found = parse_arguments(parser, words)
    if names and "--" not in "".join(shown):
        # The last one may take all that follow.
        found[names[-1]] = union(found[names[-1]], (Seq(words[len(names) - 1 :]),))
    return {name: found[name] for name in names}


def _as_name(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")
