"""config.json: reading it, and changing one value while the rest stays as written.

What may stand in it is in ``guardrails.settings``, which only a check imports: pydantic takes longer to import than
most commands take.
"""

import difflib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrails.errors import ConfigError
from guardrails.paths import Paths
from guardrails.state_io import dump_json, read_file, write_text

if TYPE_CHECKING:
    from guardrails.settings import Config

LOCKED_KEYS = ("max_length", "base_model", "model_name")
# What a run takes from the config as it is; frozen in its job.json.
TRAINING_KEYS = (
    "max_length",
    "batch_size",
    "gradient_accumulation",
    "learning_rate",
    "warmup_steps",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "seed",
    "epochs",
    "log_steps",
    "eval_steps",
    "save_minutes",
    "max_bad_rows",
)

ALERTS_HINT = (
    "addresses stand in $GUARDRAILS_ALERT_URLS or in the file secrets_file, not here; for what may stand here:"
    " docs/cli.md"
)


def read_config_text(paths: Paths) -> str:
    """The text of config.json.

    Raises:
        ConfigError: it is missing or unreadable.
    """
    try:
        return read_file(paths.config).decode()
    except FileNotFoundError:
        raise ConfigError(
            f"{paths.config} is missing", "restore it from your own copy, or make a new one: training_daemon.py --init"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{paths.config} is not UTF-8: {error}", "save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(
            f"cannot read {paths.config}: {error.strerror}", "check the file's permissions and the disk"
        ) from error


def load_config(paths: Paths) -> "Config":
    """The checked settings of a base dir.

    Raises:
        ConfigError: missing, not JSON, an unknown key (the nearest right one is named) or a bad value.
    """
    return check_config(parse_config(read_config_text(paths), paths.config), paths.config)


def parse_config(text: str, path: Path) -> dict[str, Any]:
    """The settings in ``text`` as written, unchecked.

    Raises:
        ConfigError: not a JSON object, or a key stands in it twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'key "{name}" stands in it twice')
        return dict(pairs)

    try:
        settings = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}", "correct the file; nothing was changed") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} is not a JSON object", "it starts with { and ends with }")
    return settings


def check_config(settings: dict[str, Any], path: Path) -> "Config":
    """``settings`` as a Config; the first problem as a ConfigError."""
    from pydantic import ValidationError

    from guardrails.settings import Config

    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        is_address = re.match(r"alerts\..*(url|address|heartbeat)", key)
        raise ConfigError(f'{path}: unknown key "{key}"', ALERTS_HINT if is_address else nearest_key_hint(key))
    if problem["type"] in ("none_required", "literal_error") and key in ("use_qlora", "launch"):
        raise ConfigError(
            f"{path}: {key} is not available in this version",
            f"set it back: training_controller.py config set {key} {json.dumps(Config().model_dump()[key])}",
        )
    if key.split(".")[0] == "alerts":
        # Who takes it for the place of an address has a password in it.
        raise ConfigError(f"{path}: {key}: {problem['msg']}", ALERTS_HINT)
    raise ConfigError(
        f"{path}: {key} is {json.dumps(problem['input'], default=str)}: {problem['msg']}",
        f"training_controller.py config set {key} VALUE",
    )


def find_problem(settings: dict[str, Any], path: Path) -> str | None:
    """What ``check_config`` has to say, without the path; None if all is well."""
    try:
        check_config(settings, path)
    except ConfigError as error:
        hint = f"; {error.hint}" if "unknown key" in error.message else ""
        return error.message.removeprefix(f"{path}: ") + hint
    return None


def nearest_key_hint(key: str) -> str:
    """Names the known key that ``key`` was probably meant to be."""
    from guardrails.settings import Alerts, Config, Retention

    parts: dict[str, type[Alerts | Retention]] = {"alerts": Alerts, "retention": Retention}
    known = [*Config.model_fields, *(f"{name}.{key}" for name, part in parts.items() for key in part.model_fields)]
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f'did you mean "{nearest[0]}"?' if nearest else f"known keys: {', '.join(Config.model_fields)}"


def starting_config(**values: object) -> str:
    """The text of a new config.json: all defaults, with ``values`` in their places."""
    from guardrails.settings import Config

    return dump_json({**Config().model_dump(), **values}) + "\n"


def set_config_value(paths: Paths, key: str, value: object) -> None:
    """Change one value of config.json durably; every other character stays as it is.

    Raises:
        ConfigError: the config is not JSON, or the value is not valid for the key. Other keys may be wrong still:
            each can be set right by itself.
    """
    text = read_config_text(paths)
    parse_config(text, paths.config)
    check_config({key: value}, paths.config)
    write_text(paths.config, replace_value(text, key, value))


def replace_value(text: str, key: str, value: object) -> str:
    """``text``, a valid JSON object without double keys, with the value of a top-level key replaced or added."""
    decoder = json.JSONDecoder()

    def skip_space(position: int) -> int:
        while text[position] in " \t\r\n":
            position += 1
        return position

    new = json.dumps(value)
    position = skip_space(text.index("{") + 1)
    end = position
    while text[position] != "}":
        name, position = decoder.raw_decode(text, position)
        start = skip_space(skip_space(position) + 1)
        _, end = decoder.raw_decode(text, start)
        if name == key:
            return text[:start] + new + text[end:]
        position = skip_space(end)
        if text[position] == ",":
            position = skip_space(position + 1)
    comma = "," if end > text.index("{") + 1 and text[:position].rstrip()[-1] != "{" else ""
    return f"{text[:end].rstrip()}{comma}\n  {json.dumps(key)}: {new}\n{text[position:]}"
