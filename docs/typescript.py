"""A TypeScript interface from the JSON Schema of an object, for the guide."""

import json
from collections.abc import Iterator
from typing import Any

COMMENT_COLUMN = 35
SIMPLE = {"integer": "number", "number": "number", "string": "string", "boolean": "boolean", "null": "null"}

Schema = dict[str, Any]


def make_interface(name: str, schema: Schema) -> str:
    """The interface of the objects that ``schema`` allows; its definitions stand where they are used.

    Raises:
        KeyError: the schema says something that has no translation here.
    """
    return "\n".join([f"interface {name} {{", *_fields(schema, schema.get("$defs", {}), "  "), "}"])


def _fields(schema: Schema, definitions: Schema, indent: str) -> Iterator[str]:
    after_section = False
    for position, (key, field) in enumerate(schema["properties"].items()):
        shape, wrap = _unwrap(field, definitions)
        name = key if key in schema["required"] else f"{key}?"
        comment = field.get("description") or _first_line(shape)
        is_section = "properties" in shape
        if position and (is_section or after_section):
            yield ""
        after_section = is_section
        if is_section:
            yield _line(f"{indent}{name}: {'Array<' if wrap == '>' else ''}{{", comment)
            yield from _fields(shape, definitions, f"{indent}  ")
            yield f"{indent}}}{wrap};"
        else:
            yield _line(f"{indent}{name}: {_type(field, definitions)};", comment)


def _line(code: str, comment: str) -> str:
    return f"{code:<{COMMENT_COLUMN - 2}}  // {comment}" if comment else code


def _unwrap(field: Schema, definitions: Schema) -> tuple[Schema, str]:
    """The schema that a field refers to, and what follows the closing brace if that is an object."""
    shape = _resolve(field, definitions)
    if shape.get("type") == "array" and "items" in shape:
        items = _resolve(shape["items"], definitions)
        return (items, ">") if "properties" in items else (shape, "")
    options = shape.get("anyOf", [])
    if len(options) == 2 and options[1] == {"type": "null"}:
        return _resolve(options[0], definitions), " | null"
    return shape, ""


def _resolve(schema: Schema, definitions: Schema) -> Schema:
    found: Schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return found


def _first_line(schema: Schema) -> str:
    """The description of a definition, as a comment."""
    text: str = schema.get("description", "").partition("\n")[0].rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def _type(schema: Schema, definitions: Schema) -> str:
    schema = _resolve(schema, definitions)
    if "anyOf" in schema:
        return " | ".join(_type(option, definitions) for option in schema["anyOf"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " | ".join(map(json.dumps, schema["enum"]))
    if "prefixItems" in schema:
        return f"[{', '.join(_type(item, definitions) for item in schema['prefixItems'])}]"
    if schema["type"] == "array":
        items = _type(schema["items"], definitions)
        return f"{items}[]" if items.isidentifier() else f"Array<{items}>"
    return SIMPLE[schema["type"]]
