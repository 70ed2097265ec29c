"""One line each on the tests that were left out for want of a GPU or of TensorRT's API listings."""

from __future__ import annotations

import pytest

REASONS = {
    "needs an NVIDIA GPU": "GPU tests left out: there is no GPU here",
    "set DAMP_TENSORRT_API": "tests of TensorRT's full API left out: set DAMP_TENSORRT_API",
}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count them by their reason."""
    skipped = [report.longreprtext for report in terminalreporter.stats.get("skipped", [])]
    for reason, line in REASONS.items():
        if count := sum(reason in text for text in skipped):
            terminalreporter.write_line(f"{count} {line}")
