"""A model whose weights are spread over the ranks: FSDP2 (torch.distributed.fsdp.fully_shard).

Each block is a group of its own, gathered when it is computed and let go afterwards; embedding, head and what else is
in no block are the root's, whole from a forward's start to the end of its backward pass. Gradients are summed and cut
after each micro-batch, not once an update: kept whole until then, they would be as large as the model.

What computes with such weights needs every rank. In an update all of them are there. Outside of one rank 0 works, and
the others serve: rank 0 says what comes next, and they compute one token beside it, whose result nobody reads, so that
their parts of the weights are gathered. So nothing that rank 0 does depends on what another rank would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from backends.torch.group import Command, local, whole
from backends.torch.loss import KEPT, SHARDS, finish_of
from gsm8k_core.backend import nobody
from gsm8k_core.types import OutOfMemoryError, PreflightError, RankLostError, TrainState

if TYPE_CHECKING:
    from backends.torch.group import TorchGroup

NEEDED = ("set_gradient_divide_factor", "set_force_sum_reduction_for_comms", "reset_iter_state")


@torch.no_grad()
def set_from_first(tensor: torch.Tensor, values: np.ndarray[Any, Any] | None) -> None:
    """A spread tensor becomes rank 0's `values`; of the other ranks' nothing is read. Every rank calls it."""
    assert isinstance(tensor, DTensor)
    device = tensor.device
    full = torch.empty(tensor.shape, device=device) if values is None else torch.from_numpy(values).to(device)
    tensor.copy_(distribute_tensor(full, tensor.device_mesh, tensor.placements))


def restore_spread(
    trained: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.AdamW, resume: TrainState, follows: bool
) -> None:
    """As train.restore does, tensor by tensor over the ranks: of a `resume` that `follows`, only `step` is read."""
    for name, parameter in trained.items():
        state: dict[str, torch.Tensor] = {"step": torch.tensor(float(resume.step), device=parameter.device)}
        set_from_first(parameter, None if follows else resume.parameters[name])
        for which, moments in (("exp_avg", resume.first_moments), ("exp_avg_sq", resume.second_moments)):
            state[which] = torch.empty_like(parameter)
            set_from_first(state[which], None if follows else moments[name])
        optimizer.state[parameter] = state


@torch.no_grad()
def copy_row(tensor: torch.Tensor, row: int, like: int) -> None:
    """Row `row` of a spread tensor becomes its row `like`. Every rank calls it."""
    assert isinstance(tensor, DTensor)
    values, mesh = whole(tensor)[like], tensor.device_mesh
    place = row - mesh.get_local_rank() * -(-tensor.shape[0] // mesh.size())  # as torch.chunk cuts
    part = local(tensor)
    if 0 <= place < len(part):
        part[place] = values


class Shards:
    """One model, spread over the ranks."""

    def __init__(self, model: Any, group: TorchGroup, device: str) -> None:
        """Spread `model`, which is in this host's memory, over the ranks' devices. Every rank does."""
        if missing := [name for name in NEEDED if not hasattr(FSDPModule, name)]:
            raise PreflightError(
                f"FSDP needs torch 2.13 or newer (this is {torch.__version__}, without {missing[0]}); "
                "pip install 'torch>=2.13', or a launch without FSDP"
            )
        vars(model)[KEPT] = (finish_of(model),)
        self._model, self._group = model, group
        self.summon: Callable[[], None] = nobody  # of rank 0: has the others serve
        self._depth = 0  # of what rank 0 computes, one within the other
        self._at_work = self._told = False
        self._computed = False  # whether there was a forward pass
        self._lost: RankLostError | None = None  # why nothing can be computed any more
        mesh = init_device_mesh(device, (group.size,))
        for block in model.get_decoder().layers:
            fully_shard(block, mesh=mesh, reshard_after_forward=group.reshards)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        for part in self._parts():
            part.set_gradient_divide_factor(1.0)  # a sum: the loss is divided by the targets of all ranks
            part.set_force_sum_reduction_for_comms(True)  # gloo has no other
        model.register_forward_pre_hook(self._before, prepend=True)
        model.register_forward_hook(self._after)
        vars(model)[SHARDS] = self

    def as_forward(self, work: Callable[[], Any], calls_it: bool) -> Any:
        """`work()`, which calls every block once: the model's parts as its own forward, so that they are whole in it.

        Autocast keeps no cast of a weight then: it would outlive the gathered weight, and all were the model's size.
        """
        with self._no_second_copy():
            if calls_it:
                return work()
            before = vars(self._model).get("forward")
            self._model.forward = work
            try:
                return self._model()
            finally:
                del self._model.forward
                if before is not None:
                    self._model.forward = before

    @contextmanager
    def _no_second_copy(self) -> Iterator[None]:
        device = self._model.device.type
        if not torch.is_autocast_enabled(device):
            yield
            return
        with torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=False):
            yield

    def _parts(self) -> Iterator[Any]:
        return (module for module in self._model.modules() if isinstance(module, FSDPModule))

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """In here it is chosen what is trained; the gathered weights hear of it afterwards. Every rank calls it."""
        before = self._wants()
        yield
        wants = self._wants()
        if all(wants[name] == before.get(name, wants[name]) for name in wants):
            return
        for part in self._parts():
            part.unshard()
            for name, parameter in self._model.named_parameters():
                parameter.requires_grad_(wants[name])
            part.reshard()

    def _wants(self) -> dict[str, bool]:
        return {name: parameter.requires_grad for name, parameter in self._model.named_parameters()}

    # --- rank 0, outside of an update -----------------------------------------------------------------------------

    @contextmanager
    def led(self) -> Iterator[None]:
        """In here rank 0 computes with the weights, and the other ranks serve.

        Memory that runs out in the middle of a computation ends the run: the others wait for what does not come.
        """
        if self._lost is not None:
            raise self._lost
        if not self._depth:
            self.summon()
        self._depth += 1
        try:
            yield
        except OutOfMemoryError as error:
            if self._at_work:
                raise self.lost(error) from error
            raise
        finally:
            self._depth -= 1
            if not self._depth and not self._at_work:
                self._say(Command.END)
                self._rest()

    @contextmanager
    def step(self, command: Command) -> Iterator[None]:
        """In here is what `command` means, on every rank."""
        if self._depth:
            self._say(command)
        before, self._told, self._at_work = self._told, True, True
        yield
        self._told, self._at_work = before, False

    def lost(self, error: Exception) -> RankLostError:
        """What becomes of a run one of whose ranks had no memory, while the others computed with it."""
        self._lost = RankLostError(
            f"{error}; with FSDP a run cannot halve its micro-batches itself, as the other ranks wait for this one: "
            "go on with train --resume and half the --micro-batch-tokens"
        )
        return self._lost

    def prepare(self, settings: str) -> None:
        """In a step PREPARE: the other ranks choose what is trained by `settings`, as rank 0 does next."""
        self._group.first(settings.encode())

    def _before(self, *unused: Any) -> None:
        self._computed = True
        if self._depth and not self._told:
            self._say(Command.FORWARD)
            self._at_work = True

    def _after(self, *unused: Any) -> None:
        if not self._told:
            self._at_work = False

    def _say(self, command: Command) -> None:
        self._group.command(command)

    def prepared(self) -> str:
        """The settings that rank 0 says after PREPARE."""
        return self._group.first(b"").decode()

    # --- the other ranks ------------------------------------------------------------------------------------------

    def serve(self, others: Mapping[Command, Callable[[], None]]) -> None:
        """Take part in what rank 0 computes, until it is done. `others`: what its commands mean, but FORWARD."""
        self._model.eval()
        token_11 = torch.zeros((1, 1), dtype=torch.long, device=self._model.device)
        while (command := self._group.command()) != Command.END:
            if command == Command.FORWARD:
                with torch.no_grad():
                    self._model(input_ids=token_11, use_cache=False)
            else:
                others[command]()
        self._rest()

    def _rest(self) -> None:
        """No backward pass follows. Before its first forward the model has nothing that could be left."""
        if self._computed:
            self._model.reset_iter_state()
