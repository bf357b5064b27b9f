"""The agent guard: what a tool call of an AI agent would do to the models, decided before it is carried out.

Imports nothing of the toolkit outside this package and no third-party library, so that it starts fast on any python3.

``TYPE_CHECKING = False`` stands in these modules for the one of ``typing``, whose import would cost a tenth of a call.
"""
