"""Your own encoder: any module by the names of two of its layers, or a module that returns a map and a vector."""

import difflib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dim.config import require
from dim.encoders import Encoding
from dim.norms import norm


class Backbone(nn.Module):
    """Any network as an encoder: x [N, ...] -> Encoding.

    net: a module; local and glob: names of the layers, as in `net.named_modules()`, whose outputs are the local map
    [N, C, H, W] and the global vector [N, D] (or [N, D, 1, 1]). Without names net(x) must return (map, vector) itself.
    example: an input of two or more images, with which the shapes are found. code_size: width of the linear layer from the
    vector to the code y; None: the vector is the code.

    Encoding.conv is the last output with several places before the vector: what a global critic and probes see.
    Raises ValueError, one line, where a layer does not exist or does not fit.
    """

    def __init__(self, net: nn.Module, local: str = "", glob: str = "", *, example: Tensor, code_size: int | None = 64):
        super().__init__()
        self.net, self.local, self.conv, self.glob = net, local, local, glob
        if bool(local) != bool(glob):
            raise ValueError("name both layers, local and glob, or none of them for a module that returns (map, vector)")
        if local:
            outputs = dry_run(net, example)
            several = {name: shape for name, (shape, _) in outputs.items() if len(shape) == 4 and shape[2] * shape[3] > 1}
            single = {name: shape for name, (shape, _) in outputs.items() if len(shape) in (2, 4) and name not in several}
            check_layer("local", local, several, outputs, "a map of several places")
            check_layer("glob", glob, single, outputs, "a vector for each image")
            order = list(outputs)
            self.conv = [name for name in several if order.index(name) < order.index(glob)][-1]
        self.head: nn.Module = nn.Identity()
        with torch.no_grad():
            modes = {module: module.training for module in self.modules()}
            found = self.eval()(example)
            for module, mode in modes.items():
                module.training = mode
        if found.map.ndim != 4 or found.fc.ndim != 2 or len(found.map) != len(found.fc):
            raise ValueError(
                "the module must return a map [N, C, H, W] and a vector [N, D], it returns "
                f"{list(found.map.shape)} and {list(found.fc.shape)}"
            )
        if code_size is not None:
            self.head = nn.Linear(found.fc.shape[1], code_size)

    def forward(self, x: Tensor) -> Encoding:
        if not self.local:
            local, vector = self.net(x)
            conv = local
        else:
            caught = outputs_of(self.net, x, {self.local, self.conv, self.glob})
            local, conv, vector = caught[self.local], caught[self.conv], caught[self.glob].flatten(1)
        return Encoding(local, conv, vector, self.head(vector))


def outputs_of(net: nn.Module, x: Tensor, names: set[str]) -> dict[str, Tensor]:
    """What the named layers of a network give for x, in the order in which they ran.

    Hooks are set for this call only, so that a copy of the network has none that write into the original.
    """
    caught: dict[str, Tensor] = {}

    def catch(name: str) -> Callable:
        return lambda module, inputs, output: caught.__setitem__(name, output) if isinstance(output, Tensor) else None

    handles = [module.register_forward_hook(catch(name)) for name, module in net.named_modules() if name in names]
    try:
        net(x)
    finally:
        for handle in handles:
            handle.remove()
    return caught


def dry_run(net: nn.Module, example: Tensor) -> dict[str, tuple[torch.Size, bool]]:
    """Of each layer that gives a tensor, in the order of their ends: its shape, and whether a later one changes it in place."""
    modes = {module: module.training for module in net.modules()}
    versions: dict[str, int] = {}

    def note(name: str) -> Callable:
        return lambda module, inputs, output: (
            versions.__setitem__(name, output._version) if isinstance(output, Tensor) else None
        )

    names = [name for name, _ in net.named_modules() if name]
    handles = [module.register_forward_hook(note(name)) for name, module in net.named_modules() if name]
    try:
        with torch.no_grad():
            outputs = outputs_of(net.eval(), example, set(names))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return {name: (output.shape, output._version != versions[name]) for name, output in outputs.items()}


def check_layer(role: str, name: str, fitting: dict, outputs: dict, what: str) -> None:
    """ValueError, one line with the layers that would do, where the named one does not."""
    if name in fitting and not outputs[name][1]:
        return
    beside = name.rsplit(".", 1)[0] + "." if "." in name else ""
    possible = [other for other in fitting if not outputs[other][1]]
    shown = [other for other in possible if other.startswith(beside) and "." not in other[len(beside) :]]
    shown = shown or [other for other in possible if "." not in other]
    if name in fitting:
        problem = f"{name!r} is changed in place by the layer after it"
    elif name in outputs:
        problem = f"{name!r} gives {list(outputs[name][0])[1:]} for an image"
    else:
        near = difflib.get_close_matches(name, possible, 1)
        problem = f"there is no layer {name!r}" + (f" (did you mean {near[0]}?)" if near else "")
    raise ValueError(f"{role}: {problem}; {what} is given by {', '.join(shown[:12])}{', ...' if len(shown) > 12 else ''}")


STEMS = ("torchvision", "cifar")


def resnet(name: str, channels: int, stem: str, kind: str) -> nn.Module:
    """torchvision's resnet18 or resnet50 without its classifier, first weights drawn anew.

    stem: "torchvision", 7 x 7 with stride 2 and pooling, or "cifar", 3 x 3 without either, for small images (SimCLR, appendix
    B.9). kind: the normalisation, "batch", "sync" or "layer".
    """
    require("torchvision", f"encoder.name {name}")
    import torchvision

    net = getattr(torchvision.models, name)(weights=None, norm_layer=lambda width: norm(kind, width, dims=2))
    if stem == "cifar":
        net.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()
    elif channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
    net.fc = nn.Identity()
    return net


RESNETS = ("resnet18", "resnet50")
