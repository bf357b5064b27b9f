"""Make plain ``python3 SCRIPT.py`` run on the toolkit's own virtual environment.

Parsed by whatever python3 the user has, so this file and the scripts keep to old syntax.
"""

import os
import sys

CODE_DIR = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
VENV_DIR = os.path.join(CODE_DIR, ".venv")
# Set across the exec and taken out at once, so that a .venv which cannot run ends in a message
# and not in an endless exec.
ENTERED = "_GUARDRAILS_ENTERED"


def enter_venv(failed: int = 1) -> None:
    """Replace this process by the same command under ``.venv/bin/python``, if it is not that yet.

    Exits with ``failed`` and one line that says what to run when there is no usable ``.venv``.
    """
    entered = os.environ.pop(ENTERED, None)
    if os.path.realpath(sys.prefix) == os.path.realpath(VENV_DIR):
        return
    python = os.path.join(VENV_DIR, "bin", "python")
    if entered or not os.access(python, os.X_OK):
        sys.stderr.write("error: the toolkit is not set up here; run: make -C '%s' install\n" % CODE_DIR)
        sys.exit(failed)
    arguments = getattr(sys, "orig_argv", [sys.executable] + sys.argv)[1:]
    os.environ[ENTERED] = "1"
    try:
        os.execv(python, [python] + arguments)
    except OSError as error:
        sys.stderr.write(
            "error: cannot start %s (%s); run: make -C '%s' install\n" % (python, error.strerror, CODE_DIR)
        )
        sys.exit(failed)
