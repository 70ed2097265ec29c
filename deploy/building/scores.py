"""Scores by what was scored, in a file that outlives a build that was stopped."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibration.agreement import Routing, Score, TaskCost
from runtime.durable import write_bytes


class ScoreBook:
    """Scores by what was scored, in a file that grows line by line."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, Score] = {}
        try:
            lines = file.read_bytes().splitlines()
        except OSError:
            lines = []
        whole = b""
        with suppress(ValueError, KeyError, TypeError):
            for line in lines:
                entry = json.loads(line)
                self._known[entry["key"]] = _score_from(entry["score"])
                whole += line + b"\n"
        # Without the line that was being written when the build was stopped.
        if lines:
            write_bytes(file, whole)

    def get(self, key: str, make: Callable[[], Score]) -> Score:
        """The score of this key, made and written down where it is not known."""
        if key not in self._known:
            self._known[key] = make()
            line = json.dumps({"key": key, "score": asdict(self._known[key])}) + "\n"
            with self._file.open("ab") as stream:
                stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
        return self._known[key]


def _score_from(content: Mapping[str, Any]) -> Score:
    tasks = {task: TaskCost(**cost) for task, cost in content["tasks"].items()}
    layers = tuple((int(a), int(b)) for a, b in content["routing"]["layers"])
    routing = Routing(**{**content["routing"], "layers": layers})
    return Score(tasks, routing, float(content["max_difference"]))


def figures_of(score: Score) -> dict[str, Any]:
    """A score as a manifest and `--json` show it."""
    of = score.routing
    routed = {"routing_agreement": of.agreement, "routing_pairs": of.pairs, "routing_close": of.close} if of else {}
    return {
        "tasks": {
            task: {"psnr_drop_db": cost.psnr_drop_db, "sam_rise_deg": cost.sam_rise_deg}
            for task, cost in score.tasks.items()
        },
        "mean_psnr_drop_db": score.mean_psnr_drop_db,
        "mean_sam_rise_deg": score.mean_sam_rise_deg,
        **routed,
    }
