"""Own backbones: any module by layer names, or one that returns (map, vector); torchvision's resnets by name."""

import copy

import pytest
import torch
from torch import nn

from dim import build
from dim.backbones import Backbone, resnet
from dim.config import Config, UserError, built, flat

EXAMPLE = torch.zeros(2, 3, 16, 16)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def test_layers_by_name_give_their_own_outputs():
    net, x = small_net(), torch.randn(3, 3, 16, 16)
    encoder = Backbone(net, "2", "4", example=EXAMPLE, code_size=7).eval()
    codes = encoder(x)
    assert torch.equal(codes.map, net[:3](x))
    assert torch.equal(codes.conv, net[:4](x))  # the last with several places before the vector
    assert torch.equal(codes.fc, net[:5](x).flatten(1))
    assert torch.equal(codes.y, encoder.head(codes.fc))
    assert codes.y.shape == (3, 7)
    assert torch.equal(Backbone(net, "2", "5", example=EXAMPLE, code_size=None).eval()(x).y, codes.fc)


def test_gradients_reach_the_layers_and_the_head():
    encoder = Backbone(small_net(), "2", "4", example=EXAMPLE)
    codes = encoder(torch.randn(4, 3, 16, 16))
    (codes.map.square().sum() + codes.y.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in encoder.named_parameters() if name != "net.0.bias")


class Pair(nn.Module):
    """Map and vector, as a user's own module may return them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)

    def forward(self, x):
        found = self.conv(x)
        return found, found.mean((2, 3))


def test_a_module_that_returns_map_and_vector():
    net, x = Pair(), torch.randn(2, 3, 16, 16)
    encoder = Backbone(net, example=EXAMPLE, code_size=None)
    codes = encoder(x)
    assert torch.equal(codes.map, net.conv(x))
    assert torch.equal(codes.y, net.conv(x).mean((2, 3)))
    with pytest.raises(ValueError, match=r"must return a map \[N, C, H, W\] and a vector"):
        Backbone(SwappedPair(), example=EXAMPLE)


class SwappedPair(Pair):
    def forward(self, x):
        return super().forward(x)[::-1]


@pytest.mark.parametrize(
    ("local", "glob", "said"),
    [
        ("conv9", "4", r"local: there is no layer 'conv9'.*given by 0, 1, 2, 3$"),
        ("2", "3", r"glob: '3' gives \[5, 4, 4\] for an image; a vector for each image is given by 4, 5$"),
        ("4", "4", r"local: '4' gives \[5, 1, 1\]"),
        ("2", "", "name both layers"),
    ],
)
def test_a_wrong_layer_lists_the_right_ones(local, glob, said):
    with pytest.raises(ValueError, match=said):
        Backbone(small_net(), local, glob, example=EXAMPLE)


def test_a_layer_that_a_later_one_overwrites_is_refused():
    net = small_net()
    net[2] = nn.ReLU(inplace=True)
    with pytest.raises(ValueError, match="local: '1' is changed in place by the layer after it"):
        Backbone(net, "1", "4", example=EXAMPLE)
    Backbone(net, "2", "4", example=EXAMPLE)


def test_the_dry_run_leaves_weights_statistics_modes_and_hooks_as_they_were():
    net = small_net()
    net[1].eval()
    before = copy.deepcopy(net.state_dict())
    Backbone(net, "2", "4", example=torch.randn(4, 3, 16, 16))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [module.training for module in net] == [True, False, True, True, True, True]
    assert not any(module._forward_hooks for module in net.modules())


def test_a_copy_has_outputs_of_its_own():
    encoder = Backbone(small_net(), "2", "4", example=EXAMPLE).eval()
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        other.net[0].weight.zero_()
    x = torch.randn(2, 3, 16, 16)
    first = encoder(x)
    assert not torch.equal(other(x).map, first.map)
    assert torch.equal(encoder(x).map, first.map)


def configured(**values) -> Config:
    return built(flat(Config()) | {key.replace("__", "."): value for key, value in values.items()})


def test_resnets_by_name():
    encoder = build.encoder(configured(encoder__name="resnet18"), (3, 64, 64)).eval()
    codes = encoder(torch.zeros(2, 3, 64, 64))
    assert [tuple(t.shape[1:]) for t in codes] == [(128, 8, 8), (512, 2, 2), (512,), (64,)]
    small = build.encoder(configured(encoder__name="resnet18", encoder__stem="cifar", encoder__local="layer3"), (1, 32, 32))
    codes = small.eval()(torch.zeros(2, 1, 32, 32))
    assert [tuple(t.shape[1:]) for t in codes] == [(256, 8, 8), (512, 4, 4), (512,), (64,)]


def test_a_resnet_without_batch_statistics_does_not_look_at_its_neighbours():
    x = torch.randn(4, 3, 32, 32)
    encoder = build.encoder(configured(encoder__name="resnet18", norm="layer"), (3, 32, 32))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    torch.testing.assert_close(encoder(x).y[:2], encoder(x[:2]).y)


def test_resnet50_has_torchvisions_parameters():
    import torchvision

    ours = sum(p.numel() for p in resnet("resnet50", 3, "torchvision", "batch").parameters())
    assert ours == sum(p.numel() for p in torchvision.models.resnet50().parameters()) - 2048 * 1000 - 1000


def test_a_wrong_layer_in_a_configuration_is_one_line():
    with pytest.raises(
        UserError, match=r"^encoder.local: there is no layer 'layer7' \(did you mean layer\d\?\).*layer2.*layer4$"
    ):
        build.encoder(configured(encoder__name="resnet18", encoder__local="layer7"), (3, 64, 64))


def test_first_weights_follow_the_seed_alone():
    torch.manual_seed(1)
    one = build.encoder(configured(encoder__name="resnet18"), (3, 32, 32))
    torch.manual_seed(2)
    two = build.encoder(configured(encoder__name="resnet18", train__lr=0.5), (3, 32, 32))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
