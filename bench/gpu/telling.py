"""A plugin of pytest: why a test fails is printed when it does, not at the end, which a run that is cut never reaches.

``pytest -p bench.gpu.telling``; with xdist, it is the process that has the terminal that prints.
"""

from __future__ import annotations

import pytest

MARK, LINES, WIDTH = "! ", 4, 300
"""what a line begins with; how many lines of a message are printed, and how much of each"""


def reason(text: str) -> list[str]:
    """Return the first lines of what pytest marks with an E in a failure's text; else the last of that."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    message = [line[1:].strip() for line in lines if line.startswith("E  ")]
    return [line[:WIDTH] for line in message[:LINES] or lines[-LINES:]]


class Telling:
    """What prints it."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print why a test, or what it needs before and after, has failed."""
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if not report.failed or terminal is None:
            return
        where = "" if report.when == "call" else f" ({report.when})"
        terminal.ensure_newline()
        for line in (f"{report.nodeid}{where}", *(f"  {line}" for line in reason(report.longreprtext))):
            terminal.write_line(MARK + line)
        terminal.flush()


def pytest_configure(config: pytest.Config) -> None:
    """Tell of all tests, where this process is not one of xdist's workers."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Telling(config), "telling")
