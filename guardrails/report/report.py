"""One report: the state document, and the same as text."""

from guardrails.report.parts import VERSIONS, Rows
from guardrails.report.values import Json
from guardrails.state_io import dump_json

# Where the lines of the versions go; within a string of the document the quotes would be escaped.
EMPTY_LIST = f'"{VERSIONS}": []'


class Report:
    """A document, of which the list of versions is made only where somebody asks for it: it may have thousands.

    ``sections`` is the document with an empty list.
    """

    def __init__(self, sections: Json, rows: Rows) -> None:
        self.sections = sections
        self.rows = rows
        self._document: Json | None = None
        self._text: str | None = None

    @property
    def document(self) -> Json:
        """The whole document."""
        if self._document is None:
            self._document = {**self.sections, VERSIONS: self.rows.read()}
        return self._document

    @property
    def text(self) -> str:
        """The whole document as strict ASCII JSON with a final newline; one version a line."""
        if self._text is None:
            before, empty, after = dump_json(self.sections).partition(EMPTY_LIST)
            versions = f'"{VERSIONS}": [\n    {self.rows.text}\n  ]' if self.rows.text else empty
            self._text = f"{before}{versions}{after}\n"
        return self._text
