"""Exported encoders: one safetensors file with a header that rebuilds the encoder, without the run or train.py.

ONNX as an extra, and features as arrays, for other programs.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from dim import __version__, build
from dim.checkpoint import replacing, to_be_written
from dim.config import Config, UserError, built, check, flat, require
from dim.data import Dataset, Images
from dim.encoders import Encoding
from dim.evals.features import features
from dim.reading import known, one_line, typed

FORMAT = 1
LOWEST, HIGHEST = -0.5, 2.0  # of images in [0, 1] after a resize, whose filter may overshoot


class Exported(nn.Module):
    """A frozen encoder that takes images as they are: uint8 [N, C, S, S], or floats in [0, 1] -> Encoding (map, conv, fc, y).

    shape: (C, S, S). Raises ValueError for images of another shape or type, and for floats below -0.5 or above 2: images in
    [-1, 1], standardised or not divided. Between these and [0, 1] lies what a resize with a bicubic filter overshoots.
    """

    def __init__(self, encoder: nn.Module, shape: tuple[int, int, int], levels: int = 255, signed: bool = True):
        super().__init__()
        self.encoder, self.shape, self.levels, self.signed = encoder, shape, levels, signed
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Encoding:
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}: they must be uint8, or floats in [0, 1]")
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"images are {list(images.shape)}: this encoder takes [N, {', '.join(map(str, self.shape))}]")
        if images.is_floating_point() and not torch.compiler.is_compiling() and images.numel():
            low, high = (end.item() for end in images.aminmax())
            if not (low >= LOWEST and high <= HIGHEST):  # NaN is no number in between
                raise ValueError(f"images are floats from {low:g} to {high:g}: give uint8, or bring them into [0, 1]")
        weight = next(self.encoder.parameters())
        units = images.to(weight) / self.levels if images.dtype == torch.uint8 else images.to(weight)
        return self.encoder(units * 2 - 1 if self.signed else units)


def save_encoder(path: Path, encoder: nn.Module, config: Config, facts: dict, steps: int) -> None:
    """Write an encoder's weights, in float32, with all that is needed to use them; whole or not at all.

    facts: `Dataset.facts` of what it was trained on.
    """
    require("safetensors", "an export")
    from safetensors.torch import save

    tensors = {
        name: (value.float() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in encoder.state_dict().items()
    }
    header = {
        "format": FORMAT,
        "dim": __version__,
        "encoder": {key: value for key, value in flat(config).items() if key.startswith("encoder.") or key == "norm"},
        "shape": list(facts["shape"]),
        "levels": facts["levels"],
        "signed": facts["signed"],
        "trained on": f"{facts['name']}, {steps} steps, seed {config.seed}",
    }
    header["sha256"] = digest(header, tensors)
    with writing(path) as file:
        file.write(save(tensors, metadata={"dim": json.dumps(header)}))


def load_encoder(path: str | Path) -> Exported:
    """The encoder in a file that `evaluate.py RUN --export` wrote, on the CPU, for inference.

    UserError, one line, where the file is missing, damaged or something else; nothing in it is ever run.
    """
    require("safetensors", "an exported encoder")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["dim"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        if header["format"] != FORMAT:
            raise UserError(f"{path} has format {header['format']}: this dim reads format {FORMAT}; update dim")
        if header.pop("sha256") != digest(header, tensors):
            raise UserError(f"{path} is damaged: its checksum differs; export it again")
        given = {known(key, str(path)): typed(key, value) for key, value in header["encoder"].items()}
        config, shape = built(flat(Config()) | given), tuple(int(side) for side in header["shape"])
        check(config)
        encoder = build.encoder(config, shape)  # type: ignore[arg-type]
        encoder.load_state_dict(tensors)
        return Exported(encoder, shape, int(header["levels"]), bool(header["signed"]))  # type: ignore[arg-type]
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (
        SafetensorError,
        OSError,
        LookupError,
        ArithmeticError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
    ) as error:
        reason = one_line(str(error), 80)
        raise UserError(f"{path} is no encoder exported by dim, or damaged: {type(error).__name__} {reason}") from None


def digest(header: dict, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the header, and names, shapes and content of tensors: safetensors loads a flipped bit without a word."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        found.update(f"{name} {list(tensors[name].shape)} {tensors[name].dtype}".encode())
        found.update(tensors[name].cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def save_onnx(path: Path, encoder: nn.Module, config: Config, facts: dict, steps: int) -> None:
    """Write an encoder for other programs: input `images`, floats [N, C, S, S] in [0, 1]; outputs map, conv, fc, y."""
    require("onnx", "an export to ONNX")
    require("onnxscript", "an export to ONNX")
    model = Exported(encoder.float().cpu(), tuple(facts["shape"]), facts["levels"], facts["signed"])
    example = torch.zeros(2, *facts["shape"])
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["images"],
        output_names=list(Encoding._fields),
        dynamic_shapes=({0: torch.export.Dim("n")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # None only without dynamo
    with writing(path) as file:
        file.write(program.model_proto.SerializeToString())


def save_features(path: Path, parts: dict[str, Images], encoder: nn.Module, data: Dataset, layers: Sequence[str]) -> None:
    """Write the features of each part, {"train": .., "test": ..}, as one .npz: arrays train_fc [n, D], train_labels [n], -1 for
    none, and where images are files train_names [n]; and so on."""
    arrays: dict[str, Any] = {}
    for part, images in parts.items():
        found = features(encoder, data, images, layers=layers)
        arrays |= {f"{part}_{layer}": found[layer].cpu().numpy() for layer in layers}
        arrays[f"{part}_labels"] = images.labels.cpu().numpy()
        if images.names:
            arrays[f"{part}_names"] = np.array(images.names)
    with writing(path) as file:
        np.savez(file, **arrays)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """`checkpoint.replacing`, with a user's mistake told as one."""
    with to_be_written(str(path)), replacing(path) as file:
        yield file
