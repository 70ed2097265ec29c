"""Prompt metrics of a frame, for the Python backend of Triton Inference Server.

Written by `deploy export-triton`. The server's Python needs the `runtime` package: `pip install damp-deploy`.
Interface: https://github.com/triton-inference-server/python_backend
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from runtime.errors import CubeError, DeployError
from runtime.metrics import METRIC_SETS, prompt_metrics


class TritonPythonModel:
    """A frame float32 [bands, lines, samples] in, what the network takes beside it out: metrics, and constants."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the metric set from the model's configuration, and constants from the files beside this one."""
        config = json.loads(args["model_config"])
        told = config.get("parameters", {}).get("metric_set")
        self.metric_set: str = told["string_value"] if told else ""
        if told and self.metric_set not in METRIC_SETS:
            raise CubeError(
                "unknown metric set",
                key="metric_set",
                value=self.metric_set,
                remedy=f"this runtime knows {', '.join(METRIC_SETS)}; install the one that the bundle was built with",
            )
        self.frame: str = config["input"][0]["name"]
        shapes = {output["name"]: tuple(map(int, output["dims"])) for output in config["output"]}
        files = Path(__file__).parent.glob("*.npy")
        self.constants = {f.stem: np.load(f, allow_pickle=False).reshape(shapes[f.stem]) for f in files}
        self.metrics = next((name for name in shapes if name not in self.constants), None)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request; a frame that cannot be used fails its own request only."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        frame = pb_utils.get_input_tensor_by_name(request, self.frame).as_numpy()
        made = dict(self.constants)
        try:
            if self.metrics:
                made[self.metrics] = prompt_metrics(frame, self.metric_set)
        except DeployError as error:
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(error.one_line()))
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, made[name]) for name in made])
