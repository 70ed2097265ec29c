"""A training run: what changes from step to step, how it is saved, and one step of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from export.networks import Network, load_checkpoint
from export.networks.damp import Damp
from export.networks.damp.blocks import DegradationAwareMixture, ExpertMixture, Router
from runtime.errors import ConfigError, MachineError
from training.data import Batch, Draws
from training.degrading import sent
from training.growth import grow, start_transparent
from training.loop import average, learning_rate, read_state, write_state
from training.recipe import Gates, Loss, Recipe
from training.standard import Standard, identity, standard_of

SPATIAL_ALPHA = 30.0
"""Its sigmoid is 1 in float32: nothing of a spectral branch is left."""
STATE = frozenset({"net", "optimiser", "ema", "step", "steps", "recipe", "standard", "usage", "seen", "adopted"})
FIRST_OF_STANDARD, BATCHES_OF_STANDARD = 1 << 40, 64
"""Draws that metrics are standardised by: none that a run gets to."""
USAGE_STEPS = 200
"""Steps over which the experts' shares are counted, about."""
Routed = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Way:
    """How a device trains.

    Attributes:
        dense: every expert runs for every patch: nothing that the device computed is asked for. One that no patch chose
            has gradients of zero, and so decays like the others; with chosen experts alone it stays as it is.
        compiled: by torch.compile; each size of patch compiles anew.
        half: bfloat16 where autocast takes it.
        fused: the optimiser's own kernel.
        channels_last: of the layout that convolutions like; attention has its own.
    """

    dense: bool = False
    compiled: bool = False
    half: bool = False
    fused: bool = False
    channels_last: bool = True

    @property
    def layout(self) -> torch.memory_format:
        """What frames and weights are laid out in."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


WAYS: Mapping[str, Way] = MappingProxyType(
    {"cpu": Way(), "cuda": Way(dense=True, compiled=True, half=True, fused=True)}
)


@dataclass
class Run:
    """What a training changes as it goes.

    Attributes:
        net: the network, on its device.
        optimiser: of its weights.
        ema: {key: averaged tensor}.
        standard: how it sees its metrics.
        usage: share of each expert over the last steps [layers, experts].
        routed: `net.routed`, compiled or not.
        way: how its device trains.
        steps: in all.
        step: those done.
        seen: (L1 errors, tasks) of the patches since the last line of the log.
        adopted: hash of the weights that it took in place of its own.
        teacher: who restores beside it, and the hash of its weights.
    """

    net: Damp
    optimiser: torch.optim.AdamW
    ema: dict[str, Tensor]
    standard: Standard
    usage: Tensor
    routed: Routed
    way: Way
    steps: int
    step: int = 0
    seen: list[tuple[Tensor, tuple[str, ...]]] = field(default_factory=list)
    adopted: str | None = None
    teacher: tuple[Damp, str] | None = None

    @property
    def device(self) -> torch.device:
        return self.usage.device

    @property
    def progress(self) -> float:
        """Share of the steps that are done."""
        return self.step / self.steps

    @cached_property
    def moving(self) -> tuple[list[Tensor], list[Tensor]]:
        """(averaged, present) tensors, walked for once: both keep their memory from step to step."""
        present = {k: v for k, v in self.net.state_dict().items() if v.is_floating_point()}
        return [self.ema[k] for k in present], list(present.values())


def begin(recipe: Recipe, draws: Draws, way: Way | None = None) -> Run:
    """The run before its first step, on the device of its draws. Raises CheckpointError, ConfigError."""
    device = draws.device
    way = WAYS[device.type] if way is None else way
    torch.manual_seed(recipe.seed)
    net, given = Damp(recipe.config), None
    if recipe.start is None:
        start_transparent(net)
    else:
        grow(net, given := damp_of(load_checkpoint(recipe.start, recipe.config.top_k)))
    standard = identity(recipe.config.metrics)
    if recipe.standardise:
        drawn = [draws.batch(FIRST_OF_STANDARD + index).metrics.cpu() for index in range(BATCHES_OF_STANDARD)]
        standard = standard_of(torch.cat(drawn))
        # A prompt that began anew takes them as they come.
        if given is not None and given.config.metric_set == recipe.config.metric_set:
            standard.unfold(net)
    for name, module in net.named_modules():
        if recipe.ablate == "spectral" and hasattr(module, "alpha"):
            assert name.startswith("dec")
            module.alpha.requires_grad_(False).fill_(SPATIAL_ALPHA)
        if isinstance(module, ExpertMixture):
            module.dense = way.dense
    net.to(device, memory_format=way.layout)
    learned = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, weight_decay=recipe.optimiser.weight_decay, fused=way.fused)
    usage = torch.full((recipe.config.layers, recipe.config.experts), 1 / recipe.config.experts, device=device)
    routed = compiled(net.routed) if way.compiled else net.routed
    ema = {k: v.clone() for k, v in net.state_dict().items()}
    made = Run(net, optimiser, ema, standard.to(device), usage, routed, way, recipe.optimiser.steps)
    made.teacher = None if recipe.teacher is None else teacher_of(recipe, recipe.teacher.checkpoint, device, way.dense)
    return made


def teacher_of(recipe: Recipe, checkpoint: str, device: torch.device, dense: bool) -> tuple[Damp, str]:
    """The teacher on its device, and its weights' hash. Raises CheckpointError, ConfigError: it does not fit."""
    given = load_checkpoint(checkpoint)
    net, own = damp_of(given), recipe.config
    for key, theirs, ours in (
        ("network.bands", net.config.bands, own.bands),
        ("network.metric_set", net.config.metric_set, own.metric_set),
        ("fill", given.facts.fills, recipe.fill),
        ("data.wavelengths", given.facts.wavelengths, recipe.centres),
    ):
        if theirs != ours:
            raise ConfigError(
                "the teacher takes other frames or metrics", file=checkpoint, key=key, value=ours,
                remedy=f"the teacher's is {theirs}",
            )  # fmt: skip
    for module in net.modules():
        if isinstance(module, ExpertMixture):
            module.dense = dense
    return net.requires_grad_(False).to(device), given.facts.sha256


def compiled(routed: Routed) -> Routed:
    """The network by torch.compile, which compiles at the first call. It raises MachineError where that fails."""
    fast = torch.compile(routed, dynamic=False)

    def run(frame: Tensor, metrics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        try:
            return fast(frame, metrics)
        except TorchDynamoException as error:
            raise MachineError(
                "PyTorch cannot compile the network here", key="--device", value=str(error).strip().partition("\n")[0],
                remedy="--eager trains without; compiling needs a C++ compiler, on a GPU Triton",
            ) from error  # fmt: skip

    return run


def damp_of(net: Network) -> Damp:
    """The module of a DAMP. Raises ConfigError for another network."""
    if not isinstance(net.module, Damp):
        raise ConfigError("is no DAMP", file=net.facts.file, value=net.architecture.id, remedy="give a DAMP's weights")
    return net.module


def save(run: Run, recipe: Recipe, file: Path) -> None:
    """Write the state from which `resume` goes on."""
    state = {
        "net": run.net.state_dict(), "optimiser": run.optimiser.state_dict(), "ema": run.ema, "step": run.step,
        "steps": run.steps, "standard": [run.standard.mean, run.standard.deviation], "usage": run.usage,
        "recipe": recipe.digest(), "seen": run.seen, "adopted": run.adopted,
        "teacher": run.teacher and run.teacher[1],
    }  # fmt: skip
    write_state(file, state)


def resume(run: Run, recipe: Recipe, file: Path) -> None:
    """Bring `run` to where `file` says. Raises ConfigError where another recipe wrote it, InputError for no state."""
    state = read_state(file, STATE, recipe.digest(), run.device)
    if state.get("teacher") != (run.teacher and run.teacher[1]):
        raise ConfigError("begun with another teacher", file=file, key="teacher", remedy="give that, or another --out")
    run.net.load_state_dict(state["net"])
    run.optimiser.load_state_dict(state["optimiser"])
    for key, value in run.ema.items():
        value.copy_(state["ema"][key])
    run.step, run.steps, run.usage = state["step"], state["steps"], state["usage"]
    run.standard, run.seen, run.adopted = Standard(*state["standard"]), state["seen"], state["adopted"]
    for group in run.optimiser.param_groups:
        group["fused"] = run.way.fused


def adopt(run: Run, net: Damp) -> None:
    """Go on with another network's weights in place of the run's own; the optimiser forgets what it knew."""
    run.net.load_state_dict(net.state_dict())
    run.standard.unfold(run.net)
    for key, value in run.net.state_dict().items():
        run.ema[key].copy_(value)
    run.optimiser.state.clear()


def step(run: Run, recipe: Recipe, batch: Batch) -> Tensor:
    """One step; the L1 errors [B] of the batch's patches before it, on the run's device."""
    options, progress = recipe.optimiser, run.progress
    for group in run.optimiser.param_groups:
        group["lr"] = learning_rate(run.step, run.steps, options)
    torch.manual_seed(recipe.seed * 1_000_003 + run.step)
    run.net.train()
    teach_gates(run.net, recipe.gates, progress)
    shown = torch.zeros_like(batch.metrics) if recipe.ablate == "prompt" else batch.metrics
    metrics = run.standard.of(shown)
    degraded = batch.degraded.contiguous(memory_format=run.way.layout)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.way.half):
        restored, gates, probabilities = run.routed(degraded, metrics)
    errors = (restored.float() - batch.clean).abs().mean((1, 2, 3))
    loss = softened(errors, recipe.loss, progress)
    if run.teacher is not None and recipe.teacher is not None:
        with torch.no_grad(), torch.autocast(run.device.type, torch.bfloat16, enabled=run.way.half):
            shown_how, _ = run.teacher[0](degraded, batch.metrics)
        apart = (restored.float() - shown_how.float()).abs().mean((1, 2, 3))
        loss = loss.lerp(softened(apart, recipe.loss, progress), recipe.teacher.share)
    loss = loss + balance(run.usage, recipe.gates, gates, probabilities)
    if recipe.gates.guide:
        loss = loss + recipe.gates.guide * guidance(recipe.gates.experts, batch.tasks, probabilities)
    run.optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.net.parameters(), options.gradient_norm, foreach=True)
    run.optimiser.step()
    average(*run.moving, run.step, options.ema)
    run.step += 1
    return errors.detach()


def softened(errors: Tensor, loss: Loss, progress: float) -> Tensor:
    """The loss of a batch from the L1 error [B] of its patches, `progress` 0 to 1 through the run; see `Loss`."""
    if loss.first_floor is None or loss.last_floor is None:
        return errors.mean()
    floor = loss.first_floor * (loss.last_floor / loss.first_floor) ** (progress * progress)
    return floor * torch.log1p(errors / floor).mean()


def teach_gates(net: Damp, gates: Gates, progress: float) -> None:
    """Set what the gates are disturbed by, `progress` 0 to 1 through the run; see `Gates`."""
    for module in net.modules():
        if isinstance(module, Router):
            if module.noise is None or module.blind is None:
                module.noise, module.blind = torch.zeros(2, device=net.output.weight.device)
            module.blind.fill_(gates.blind)
            first, last = gates.noise or [1 / module.experts] * 2
            module.noise.fill_(first + (last - first) * progress)
        if isinstance(module, DegradationAwareMixture) and gates.alone and module.alone is None:
            module.alone = torch.full((), gates.alone, device=net.output.weight.device)


def balance(usage: Tensor, options: Gates, gates: Tensor, probabilities: Tensor) -> Tensor:
    """The loss that has all experts chosen alike, of gates and probabilities [B, layers, experts]; see `Gates`.

    `usage` [layers, experts] moves on.
    """
    chosen = (gates.detach() > 0).float().mean(0)
    usage.lerp_(chosen / chosen.sum(-1, keepdim=True).clamp(min=1e-6), 1 / USAGE_STEPS)
    return options.balance * usage.shape[-1] * (usage * probabilities.mean(0)).sum(-1).mean()


def guidance(experts: Mapping[str, int], tasks: Sequence[str], probabilities: Tensor) -> Tensor:
    """Cross-entropy of probabilities [B, layers, experts] against the experts of the patches' tasks, their mean."""
    rows = [row for row, task in enumerate(tasks) if task in experts]
    wanted = sent(np.array([experts[tasks[row]] for row in rows]), probabilities.device)
    if not rows:
        return probabilities.sum() * 0
    p = probabilities[rows].gather(2, wanted[:, None, None].expand(-1, probabilities.shape[1], 1))
    return -p.clamp(min=1e-6).log().mean()


def averaged(run: Run, recipe: Recipe) -> Damp:
    """The network of the averaged weights, of raw metrics, on the run's device."""
    net = Damp(recipe.config)
    net.load_state_dict(run.ema)
    net.to(run.device)
    run.standard.fold(net)
    return net
