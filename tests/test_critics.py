"""Critics against the networks as the paper draws them, and every way of choosing pairs against a loop."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from dim import critics
from dim.critics import CRITICS, Bilinear, Concat, Cosine, Dot, Projected, ResidualHead, Rows, Table, of_rows
from dim.estimators import infonce
from dim.memory import Live
from dim.norms import NORMS

Y_WIDTH, MAP_WIDTH, UNITS = 3, 5, 8
MAKERS = {
    "dot": lambda: Dot(Y_WIDTH, MAP_WIDTH, UNITS, scale=0.7),
    "cosine": lambda: Cosine(Y_WIDTH, MAP_WIDTH, UNITS, 0.3, learned=True),
    "bilinear": lambda: Bilinear(Y_WIDTH, MAP_WIDTH),
    "concat": lambda: Concat(Y_WIDTH, MAP_WIDTH, UNITS),
    "projected": lambda: Projected(Y_WIDTH, 4, Dot(4, MAP_WIDTH, UNITS, scale=0.7)),
}

each_critic = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
each_norm = pytest.mark.parametrize("kind", NORMS)


@pytest.fixture(autouse=True)
def first_weights():
    torch.manual_seed(0)


def shaken(module, seed=0):
    """In float64, every parameter moved off its first value: gains off 1, biases off 0."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.double().parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=draws, dtype=torch.float64)
    return module


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def assert_same_scores(one, other, sources):
    """Equal values, and equal gradients of a random mixture of the scores for every source."""
    torch.testing.assert_close(one, other)
    mixture = normal(*one.shape, seed=9).detach()
    left, right = (torch.autograd.grad((s * mixture).sum(), sources, retain_graph=True) for s in (one, other))
    torch.testing.assert_close(left, right)
    assert all(gradient.any() for gradient in left)


def test_the_names_in_a_configuration():
    assert {"dot": Dot, "cosine": Cosine, "bilinear": Bilinear, "concat": Concat} == CRITICS


# ---- against the unfactorised networks


def normalised(x, over, layer):
    """x [N, C, H, W] to mean 0 and variance 1 over the dimensions `over`, then the layer's gain and bias by channel."""
    mean, var = x.mean(over, keepdim=True), x.var(over, correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]


def residual_net(head, x, kind):
    """The official code's net of 1x1 convolutions on a map x [N, D, H, W] -> [N, U, H, W]."""
    hidden = F.conv2d(x, head.hidden.weight[:, :, None, None], head.hidden.bias)
    if kind != "none":
        hidden = normalised(hidden, (0, 2, 3) if kind in ("batch", "sync") else 1, head.norm)
    out = F.conv2d(hidden.clamp_min(0), head.out.weight[:, :, None, None], head.out.bias)
    return normalised(out + F.conv2d(x, head.shortcut.weight[:, :, None, None]), 1, head.layer_norm)


@each_norm
def test_dot_is_two_residual_nets_and_an_inner_product(kind):
    critic = shaken(Dot(Y_WIDTH, MAP_WIDTH, UNITS, scale=0.7, norm=kind))
    y, m = normal(4, Y_WIDTH), normal(6, MAP_WIDTH, 2, 3, seed=1)
    codes = residual_net(critic.anchor_head, y[:, :, None, None], kind)[:, :, 0, 0]
    maps = residual_net(critic.map_head, m, kind)
    expected = torch.stack([(0.7 * maps * code[:, None, None]).sum(1).flatten(1) for code in codes])  # [A, P, L]
    a, b = critic.embed(y, m.flatten(2))
    assert a.shape == (4, UNITS)
    assert b.shape == (6, 6, UNITS)
    # a bias before batch statistics has no gradient, nor does what the last LayerNorm takes away
    assert_same_scores(critic.table(a, b), expected, [y, m, critic.map_head.shortcut.weight, critic.anchor_head.hidden.weight])
    torch.testing.assert_close(critic.score(a[:, None, None], b), critic.table(a, b))


def test_batch_statistics_are_those_of_a_two_dimensional_batch_norm():
    """Running mean and variance, over images and locations together, as BatchNorm2d keeps them on the map."""
    head = shaken(ResidualHead(MAP_WIDTH, UNITS))
    m = normal(6, MAP_WIDTH, 2, 3).detach()
    reference = torch.nn.BatchNorm2d(UNITS).double()
    reference(F.conv2d(m, head.hidden.weight[:, :, None, None]))
    critic = Dot(Y_WIDTH, MAP_WIDTH, UNITS).double()
    critic.map_head = head
    critic.embed(normal(4, Y_WIDTH), m.flatten(2))
    torch.testing.assert_close(head.norm.running_mean, reference.running_mean)
    torch.testing.assert_close(head.norm.running_var, reference.running_var)


def tiled_net(critic, y, m):
    """Concat-and-convolve as the paper draws it: y tiled over every location, one concatenation, 1x1 convolutions."""
    anchors, images, locations = len(y), len(m), m.shape[2]
    tiled = y[:, None, :, None].expand(-1, images, -1, locations)
    x = torch.cat([m.expand(anchors, -1, -1, -1), tiled], 2).flatten(0, 1)  # [A P, Dm + Dy, L]
    first = torch.cat([critic.map_part.weight, critic.anchor_part.weight], 1)
    x = F.conv1d(x, first[:, :, None], critic.anchor_part.bias).relu()
    x = F.conv1d(x, critic.hidden.weight[:, :, None], critic.hidden.bias).relu()
    return F.conv1d(x, critic.out.weight[:, :, None], critic.out.bias).view(anchors, images, locations)


def test_concat_is_the_tiled_network():
    critic = shaken(Concat(Y_WIDTH, MAP_WIDTH, UNITS))
    y, m = normal(4, Y_WIDTH), normal(6, MAP_WIDTH, 2, seed=1)
    a, b = critic.embed(y, m)
    assert a.shape == (4, UNITS)
    assert b.shape == (6, 2, UNITS)
    assert_same_scores(critic.table(a, b), tiled_net(critic, y, m), [y, m, *critic.parameters()])


def test_concat_starts_like_the_one_layer_it_is():
    """Both parts uniform within 1 / sqrt(Dy + Dm), torch's rule for the whole layer, not for each part."""
    critic, bound = Concat(16, 48, 256), 1 / math.sqrt(16 + 48)
    for weight in (critic.anchor_part.weight, critic.map_part.weight, critic.anchor_part.bias):
        assert weight.shape[0] == 256
        assert 0.97 * bound < weight.abs().max() <= bound
    assert critic.map_part.bias is None


# ---- sizes and first values


@pytest.mark.parametrize(("width", "parameters"), [(128, 4_728_832), (64, 4_466_688)])
def test_parameters_of_the_papers_heads(width, parameters):
    with torch.device("meta"):
        head = ResidualHead(width, 2048)
    assert sum(weight.numel() for weight in head.parameters()) == parameters


def test_parameters_of_the_papers_concat_critic():
    with torch.device("meta"):
        critic = Concat(64, 128, 512)
    whole = (64 + 128) * 512 + 512 + 512 * 512 + 512 + 512 + 1
    assert sum(weight.numel() for weight in critic.parameters()) == whole


def test_shortcut_starts_near_the_identity():
    weight = ResidualHead(6, 10).shortcut.weight.detach()
    assert weight.shape == (10, 6)
    assert torch.equal(weight.diagonal(), torch.ones(6))
    rest = weight[~torch.eye(10, 6, dtype=torch.bool)]
    assert 0.008 < rest.abs().max() <= 0.01
    assert rest.min() < 0 < rest.max()
    narrow = ResidualHead(10, 6).shortcut.weight  # fewer units than inputs: no identity to be near to
    assert narrow.abs().max() <= 0.01


def test_first_scores_of_dot_have_standard_deviation_sqrt_units():
    """Outputs of LayerNorm have squared length U, so at scale 1 the paper's scores start near sqrt(2048) = 45."""
    critic, units = Dot(16, 16, 256), 256
    a, b = critic.embed(torch.randn(64, 16), torch.randn(64, 16, 4))
    torch.testing.assert_close(a.square().sum(1), torch.full((64,), float(units)), rtol=0.01, atol=0)
    assert critic.table(a, b).std().item() == pytest.approx(math.sqrt(units), rel=0.5)


def test_scale_multiplies_the_scores():
    one, scaled = (shaken(Dot(Y_WIDTH, MAP_WIDTH, UNITS, scale=s)) for s in (1.0, 0.05))
    y, m, own = normal(4, Y_WIDTH), normal(4, MAP_WIDTH, 2, seed=1), torch.arange(4)[:, None]
    (a, b), rows = one.embed(y, m), torch.tensor([[2], [4], [6], [0]])
    torch.testing.assert_close(scaled.score(a[:, None], b), 0.05 * one.score(a[:, None], b))
    torch.testing.assert_close(scaled.pairs(a, b, own), 0.05 * one.pairs(a, b, own))
    torch.testing.assert_close(scaled.pairs(a, b, own, rows), 0.05 * one.pairs(a, b, own, rows))


def test_cosine_is_the_cosine_of_dots_heads_over_the_temperature():
    dot, critic = shaken(Dot(Y_WIDTH, MAP_WIDTH, UNITS)), Cosine(Y_WIDTH, MAP_WIDTH, UNITS, 0.3).double()
    critic.load_state_dict(dot.state_dict() | {"log_scale": critic.log_scale})
    y, m = normal(4, Y_WIDTH), normal(6, MAP_WIDTH, 2, seed=1)
    a, b = dot.embed(y, m)
    expected = F.cosine_similarity(a[:, None, None], b[None], dim=-1) / 0.3
    assert_same_scores(critic.table(*critic.embed(y, m)), expected, [y, m])
    assert critic.table(*critic.embed(y, m)).abs().max() <= 1 / 0.3


def test_a_learned_temperature_moves_and_stops_at_a_hundredth():
    fixed, learned = (Cosine(Y_WIDTH, MAP_WIDTH, UNITS, 0.02, kind).double() for kind in (False, True))
    assert [name for name, p in fixed.named_parameters() if not p.requires_grad] == ["log_scale"]
    a, b = F.normalize(normal(4, UNITS), dim=-1), F.normalize(normal(4, UNITS, seed=1), dim=-1)
    score = learned.score(a, b)
    (gradient,) = torch.autograd.grad(score.sum(), learned.log_scale)
    torch.testing.assert_close(gradient, score.sum().detach())  # d e^s x / d s
    with torch.no_grad():
        learned.log_scale.fill_(10.0)
    torch.testing.assert_close(learned.score(a, b), 100 * (a * b).sum(-1))
    assert torch.autograd.grad(learned.score(a, b).sum(), learned.log_scale)[0] == 0


def test_bilinear_is_a_bilinear_form():
    critic = shaken(Bilinear(Y_WIDTH, MAP_WIDTH))
    y, m = normal(4, Y_WIDTH), normal(6, MAP_WIDTH, 2, seed=1)
    expected = torch.stack([torch.stack([y[i] @ critic.weight.weight.T @ m[p] for p in range(6)]) for i in range(4)])
    assert_same_scores(critic.table(*critic.embed(y, m)), expected, [y, m, critic.weight.weight])


@each_norm
def test_a_projector_stands_between_y_and_the_critic(kind):
    inner = shaken(Dot(4, MAP_WIDTH, UNITS))
    critic = shaken(Projected(Y_WIDTH, 4, inner, kind))
    y, m = normal(8, Y_WIDTH), normal(6, MAP_WIDTH, 2, seed=1)
    first, _, _, last = critic.projector
    hidden = (y @ first.weight.T + (first.bias if kind == "none" else 0))[:, :, None, None]
    if kind != "none":
        hidden = normalised(hidden, (0, 2, 3) if kind in ("batch", "sync") else 1, critic.projector[1])
    projected = hidden[:, :, 0, 0].clamp_min(0) @ last.weight.T + last.bias
    assert_same_scores(critic.table(*critic.embed(y, m)), inner.table(*inner.embed(projected, m)), [y, m, last.weight])


# ---- norm: what a head's output depends on


@each_norm
def test_only_batch_norm_lets_other_rows_in(kind):
    head = shaken(ResidualHead(MAP_WIDTH, UNITS, kind))
    x = normal(6, MAP_WIDTH).detach()
    other = torch.cat([x[:1], 3 * x[1:] + 1])
    moved = (head(x)[0] - head(other)[0]).abs().max().item()
    assert moved > 0.01 if kind in ("batch", "sync") else moved < 1e-12
    assert (head.hidden.bias is not None) == (kind == "none")


# ---- pairs


def scores_by_loop(critic, a, b, places):
    """places[i]: the (image, location) pairs that stand against anchor i -> [A, K]."""
    return torch.stack([torch.stack([critic.score(a[i], b[p]) for p in places[i]]) for i in range(len(a))])


def every_other(own, images, locations):
    return [[(j, place) for j in range(images) if j != i for place in range(locations)] for i in own]


OWNS = {"in order": [0, 1, 2, 3], "permuted": [2, 0, 3, 1], "some": [0, 2, 3], "offset": [3, 4, 5], "one anchor": [2]}


@pytest.mark.parametrize("own", OWNS.values(), ids=OWNS)
@pytest.mark.parametrize("gather", [0, 32], ids=["gathered", "table"])
@each_critic
def test_all_other_images_by_loop_by_none_and_by_rows(make, gather, own):
    critic, images, locations = shaken(make()), max(4, own[-1] + 1), 3
    critic.GATHER = gather  # 0: rows are never worth a table
    a, b = normal(len(own), UNITS), normal(images, locations, UNITS, seed=1)
    places = every_other(own, images, locations)
    rows = torch.tensor([[j * locations + place for j, place in chosen] for chosen in places])
    expected = scores_by_loop(critic, a, b, places)
    assert expected.shape == (len(own), (images - 1) * locations)
    assert_same_scores(critic.pairs(a, b, torch.tensor(own)[:, None]), expected, [a, b])
    assert_same_scores(critic.pairs(a, b, torch.tensor(own)[:, None], rows), expected, [a, b])
    positive = scores_by_loop(critic, a, b, [[(j, place) for place in range(locations)] for j in own])
    for asked in (None, rows):
        pos, neg = critic.scores(a, b, torch.tensor(own), torch.tensor(own)[:, None], asked)
        assert_same_scores(pos, positive, [a, b])
        assert_same_scores(neg, expected, [a, b])


@pytest.mark.parametrize(("k", "tables"), [(1, 0), (2, 1), (5, 1)])
def test_dot_reads_its_table_from_a_share_of_the_pool_on(k, tables):
    """8 x 8 rows: one negative for each anchor is gathered, two are 1 / 32 of the pool. Same scores either way."""
    critic, made = shaken(MAKERS["dot"]()), []
    critic.GATHER = 32
    plain = critic.table
    critic.table = lambda a, b: made.append(1) or plain(a, b)
    a, b = normal(8, UNITS), normal(8, 8, UNITS, seed=1)
    rows = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(i))[:k] for i in range(8)])
    places = [[divmod(row, 8) for row in chosen] for chosen in rows.tolist()]
    assert_same_scores(critic.pairs(a, b, torch.arange(8)[:, None], rows), scores_by_loop(critic, a, b, places), [a, b])
    assert len(made) == tables
    pos, neg = critic.scores(a, b, torch.arange(8), torch.arange(8)[:, None], rows)
    assert_same_scores(neg, scores_by_loop(critic, a, b, places), [a, b])
    assert_same_scores(pos, critic.score(a[:, None], b), [a, b])
    assert len(made) == 2 * tables  # one for both


# ---- precision


def every_score(critic, a, b):
    """Scores by each of the ways that a term asks for them, all of the same own pairs' and negatives' kind."""
    own, few = torch.arange(len(a))[:, None], torch.tensor([[3], [0]])
    critic.GATHER = 0
    gathered = critic.pairs(a, b, own, few)
    critic.GATHER = 32
    read = [critic.pairs(a, b, own), critic.pairs(a, b, own, few), *critic.scores(a, b, own[:, 0], own)]
    return [critic.score(a[:, None], b), critic.table(a, b), *read, gathered]


@each_critic
def test_scores_under_autocast_are_float32(make):
    critic = make()
    y, m = normal(2, Y_WIDTH).float(), normal(2, MAP_WIDTH, 2, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        a, b = critic.embed(y, m)
        low = every_score(critic, a.bfloat16(), b.bfloat16())
    assert all(s.dtype == torch.float32 for s in low)
    assert all((s.bfloat16().float() != s).any() for s in low)  # and not numbers of 8 bits in a wider coat
    for s, exact in zip(low, every_score(critic, a.float(), b.float()), strict=True):
        torch.testing.assert_close(s, exact, rtol=0.05, atol=0.1)
    assert all(g.isfinite().all() for g in torch.autograd.grad(sum(s.sum() for s in low), list(critic.parameters())))


def test_dot_under_autocast_is_the_exact_product_of_what_it_was_given():
    critic = Dot(Y_WIDTH, MAP_WIDTH, UNITS, scale=0.7)
    a, b = normal(2, UNITS).bfloat16(), normal(2, 2, UNITS, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        low = every_score(critic, a, b)
    for s, exact in zip(low, every_score(critic, a.double(), b.double()), strict=True):
        torch.testing.assert_close(s.double(), exact, rtol=1e-5, atol=1e-6)


def test_concat_under_autocast_has_its_last_layer_in_float32():
    critic = Concat(Y_WIDTH, MAP_WIDTH, UNITS)
    a, b = normal(2, UNITS).bfloat16(), normal(2, 2, UNITS, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        score, hidden = critic.score(a[:, None], b), critic.hidden((a[:, None] + b).relu()).relu()
    assert hidden.dtype == torch.bfloat16
    torch.testing.assert_close(score, critic.out(hidden.float())[..., 0], rtol=1e-6, atol=1e-6)


@each_critic
def test_float64_stays(make):
    critic = make().double()
    a, b = critic.embed(normal(2, Y_WIDTH), normal(2, MAP_WIDTH, 2, seed=1))
    assert all(s.dtype == torch.float64 for s in every_score(critic, a, b))


def test_a_bf16_table_has_the_scores_of_float32_and_its_gradients_to_bf16s_rounding():
    """Scores of 8-bit rows are not rounded; gradients are to bf16's 8 bits, themselves and the incoming one."""
    critic = Dot(Y_WIDTH, MAP_WIDTH, 64, scale=0.5)
    a, b = normal(16, 64).bfloat16().detach(), normal(3, 5, 64, seed=1).bfloat16().detach()
    incoming = normal(16, 3, 5, seed=2).float().detach()
    found, expected = [], []
    for dtype, into in ((torch.bfloat16, found), (torch.float32, expected)):
        rows = [x.to(dtype).requires_grad_() for x in (a, b)]
        table = critic.table(*rows)
        into += [table, *torch.autograd.grad(table, rows, incoming)]
    assert table.dtype == torch.float32
    assert torch.equal(found[0], expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).abs().max() < 2**-7 * theirs.abs().max()
        assert (ours.float() - theirs).norm() < 2**-8 * theirs.norm()


@pytest.mark.parametrize("common", [0, 3, 10])
def test_what_rows_have_in_common_does_not_spoil_the_anchors_gradient(common):
    """InfoNCE's gradient sums to 0 over the pairs of an anchor, so a part that all rows share must cancel."""
    shared = common * normal(64, seed=5).detach()
    a, b = normal(16, 64).float().detach(), (normal(16, 8, 64, seed=1).detach() + shared).bfloat16()
    own, others = torch.arange(16), torch.arange(16)[:, None]
    critic, found = Dot(Y_WIDTH, MAP_WIDTH, 64, scale=0.1), []
    for dtype in (torch.bfloat16, torch.float64):
        anchors = a.double().requires_grad_() if dtype == torch.float64 else a.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(infonce(*critic.scores(anchors, b.to(dtype), own, others)), anchors)
        found.append(gradient.double())
    assert (found[0] - found[1]).norm() < 0.01 * found[1].norm()


def test_a_bf16_tables_gradient_comes_in_rounded():
    """So that its products are those of bf16; what rounding takes from its sum is given back along the mean of b."""
    a = torch.ones(1, 4, requires_grad=True)
    b = torch.tensor([[1.0], [0], [-1]]).expand(3, 4).bfloat16().requires_grad_()
    (left,) = torch.autograd.grad(Table.apply(a, b), a, torch.tensor([[1 + 2**-10, 1, 1]]))
    assert torch.equal(left, torch.zeros(1, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_learned_temperature_has_its_gradient_from_a_table_too(dtype):
    critic = Cosine(3, 5, 8, 0.3, learned=True)
    a, b = (F.normalize(x.detach(), dim=-1).to(dtype) for x in (normal(4, 8), normal(3, 2, 8, seed=1)))
    total = critic.table(a, b).square().sum()
    (gradient,) = torch.autograd.grad(total, critic.log_scale)
    assert gradient.item() == pytest.approx(2 * total.item(), rel=0.02)  # d (e^s x)^2 / d s


def test_cosines_under_autocast_are_of_unit_length_to_float32():
    critic = Cosine(3, 5, 8, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        for x in critic.embed(normal(4, 3).float(), normal(4, 5, 2, seed=1).float()):
            assert x.dtype == torch.float32
            assert (x.norm(dim=-1) - 1).abs().max() < 1e-6


def test_a_bf16_table_can_be_differentiated_twice():
    a, b = normal(3, 4).bfloat16().detach().float().requires_grad_(), normal(5, 4, seed=1).bfloat16().detach().requires_grad_()
    scores = Table.apply(a, b)
    (first,) = torch.autograd.grad(scores.square().sum(), a, create_graph=True)  # 2 a b^T b
    (second,) = torch.autograd.grad(first.sum(), a)
    expected = 2 * (b.detach().float().T @ b.detach().float()).sum(0).expand(3, -1)
    assert torch.allclose(second, expected, rtol=0.03, atol=0.03 * expected.abs().max())


# ---- rows


@pytest.mark.parametrize(("width", "units"), [(3, 5), (5, 3), (4, 4)], ids=["widening", "narrowing", "square"])
@pytest.mark.parametrize("biased", [True, False])
def test_many_rows_have_the_gradients_of_a_linear_layer(width, units, biased):
    layer, x = shaken(torch.nn.Linear(width, units, bias=biased)), normal(2 * units, width)
    found = of_rows(layer, x)
    assert type(found.grad_fn).__name__ == "RowsBackward"
    assert_same_scores(found, layer(x), [x, *layer.parameters()])


def test_gradients_of_gradients_of_many_rows():
    x, w, bias = normal(6, 2), normal(3, 2, seed=1), normal(3, seed=2)
    assert torch.autograd.gradgradcheck(lambda *given: Rows.apply(*given).sin(), (x, w, bias))


def test_many_rows_under_autocast_are_those_of_bf16():
    """To the rounding of bf16, and the weights' gradients in their own float32."""
    layer, x = torch.nn.Linear(4, 8), normal(64, 4).detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        many, few = of_rows(layer, x), torch.cat([of_rows(layer, part) for part in x.split(8)])
    assert type(few.grad_fn).__name__ == "CatBackward0"
    assert torch.equal(many, few)  # a bias added behind the product would be rounded twice
    assert many.dtype == few.dtype == torch.bfloat16
    for p, q in zip(*(torch.autograd.grad(y.float().square().sum(), layer.parameters()) for y in (many, few)), strict=True):
        assert p.dtype == torch.float32
        torch.testing.assert_close(p, q, rtol=0.02, atol=0.02 * q.abs().max().item())


def concat_and_pairs(own):
    """A critic of 4 units, a [A, 4], b [3, 2, 4], and for each anchor its own map's image and three rows, some twice."""
    rows = torch.tensor([[0, 3, 3], [5, 3, 0], [1, 1, 2]])[: len(own)]
    return shaken(Concat(Y_WIDTH, MAP_WIDTH, 4)), normal(len(own), 4), normal(3, 2, 4, seed=1), torch.tensor(own), rows


@pytest.mark.parametrize("pairs", [1, 2, 5, 7, 10, 15, 100])
@pytest.mark.parametrize("own", [[0, 1, 2], [2, 0, 1], [0, 2]], ids=["all", "permuted", "some"])
def test_concat_by_tiles_is_its_score(own, pairs, monkeypatch):
    """Five pairs of each anchor: tiles of a part of them, of one anchor, of some, of all."""
    monkeypatch.setattr(critics, "TILE", pairs * 4 * 8)
    critic, a, b, own, rows = concat_and_pairs(own)
    sources = a, b, *critic.hidden.parameters(), *critic.out.parameters()
    found = torch.cat(critic.scores(a, b, own, own[:, None], rows), 1)
    mine, others = b[own], b.flatten(0, 1)[rows]
    assert_same_scores(found, critic.score(a[:, None], torch.cat([mine, others], 1)), sources)
    assert torch.autograd.gradcheck(lambda *_: torch.cat(critic.scores(a, b, own, own[:, None], rows), 1), sources)


def test_gradients_by_tiles_leave_what_came_in_and_what_is_kept():
    critic, a, b, own, rows = concat_and_pairs([2, 0, 1])
    _, neg = critic.scores(a, b, own, own[:, None], rows)
    incoming = torch.ones_like(neg).requires_grad_()
    (slope,) = torch.autograd.grad(neg, b, incoming, create_graph=True)
    assert torch.equal(incoming, torch.ones_like(neg))
    (again,) = torch.autograd.grad(neg, b, incoming, retain_graph=True)
    assert torch.equal(slope, again)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("all_others", [True, False])
def test_concat_keeps_one_hidden_layer_of_its_pairs(all_others):
    critic, a, b, kept = Concat(Y_WIDTH, MAP_WIDTH, 16), torch.randn(8, 16), torch.randn(8, 20, 16), []
    own = torch.arange(8)
    rows = None if all_others else torch.arange(100).expand(8, 100)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        neg = critic.pairs(a, b.requires_grad_(), own[:, None], rows)
    pairs = 8 * (140 if all_others else 100)
    assert neg.shape == (8, pairs // 8)
    assert pairs * 16 <= sum(kept) < 1.5 * pairs * 16


def test_concat_by_tiles_under_autocast_adds_up_in_float32(monkeypatch):
    """Its gradients stay near those of float64 with many small tiles; sums of bf16 would not."""
    monkeypatch.setattr(critics, "TILE", 2 * 32 * 2)
    critic = Concat(Y_WIDTH, MAP_WIDTH, 32)
    a, b, rows = torch.randn(8, 32).bfloat16(), torch.randn(8, 4, 32).bfloat16(), torch.randint(32, (8, 600))
    own = torch.arange(8)
    weights = [*critic.hidden.parameters(), *critic.out.parameters()]

    def gradients():
        pos, neg = critic.scores(a.requires_grad_(), b, own, own[:, None], rows)
        assert pos.dtype == neg.dtype
        return torch.autograd.grad(neg.sum() - pos.sum(), [a, *weights]), pos.dtype

    with torch.autocast("cpu", torch.bfloat16):
        found, dtype = gradients()
    assert dtype == torch.float32
    assert [g.dtype for g in found] == [torch.bfloat16, *[torch.float32] * 4]
    critic.double()
    a, b = a.detach().double(), b.double()
    exact, dtype = gradients()
    assert dtype == torch.float64
    for g, h in zip(found, exact, strict=True):
        assert (g - h).norm() < 0.03 * h.norm()  # 0.02 of the anchors, below 0.01 of weights; 0.06 and 0.3 with sums of bf16


@pytest.mark.parametrize("pairs", [2, 64])
def test_gradients_by_tiles_under_autocast_are_near_those_of_float64(pairs, monkeypatch):
    """With tiles so small that sums over them in bf16 would show, and so large that sums within them would. Gradients of
    InfoNCE sum to 0 for each anchor and the hidden layer is positive on the whole, so that what rounding adds to them shows."""
    monkeypatch.setattr(critics, "TILE", pairs * 32 * 2)
    critic = Concat(Y_WIDTH, MAP_WIDTH, 32)
    a, b, rows = torch.randn(8, 32).bfloat16(), torch.randn(8, 4, 32).bfloat16(), torch.randint(32, (8, 600))
    own = torch.arange(8)
    with torch.no_grad():
        critic.hidden.bias += 1

    def gradients():
        pos, neg = critic.scores(a.requires_grad_(), b.requires_grad_(), own, own[:, None], rows)
        assert pos.dtype == neg.dtype
        sources = {"a": a, "b": b, **dict(critic.hidden.named_parameters()), "last": critic.out.weight}
        value = infonce(pos, neg) + 0.1 * neg.square().mean()
        return dict(zip(sources, torch.autograd.grad(value, list(sources.values())), strict=True)), pos.dtype

    with torch.autocast("cpu", torch.bfloat16):
        found, dtype = gradients()
    assert dtype == torch.float32
    assert [g.dtype for g in found.values()] == [torch.bfloat16] * 2 + [torch.float32] * 3
    critic.double()
    a, b = a.detach().double(), b.detach().double()
    exact, dtype = gradients()
    assert dtype == torch.float64
    off = {name: ((found[name] - g).norm() / g.norm()).item() for name, g in exact.items()}
    bounds = {"a": 0.04, "b": 0.04, "weight": 0.05, "bias": 0.06, "last": 0.008}
    assert all(off[name] < bound for name, bound in bounds.items()), off


def test_concat_within_autocast_takes_its_type():
    """Vectors in float32, a backward pass within: as its score, in bf16."""
    critic, own, rows = Concat(Y_WIDTH, MAP_WIDTH, 16), torch.arange(3), torch.tensor([[0, 3, 3], [5, 3, 0], [1, 1, 2]])
    a, b = torch.randn(3, 16, requires_grad=True), torch.randn(3, 2, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        neg = critic.pairs(a, b, own[:, None], rows)
        torch.testing.assert_close(neg, critic.score(a[:, None].bfloat16(), b.flatten(0, 1)[rows].bfloat16()))
        neg.sum().backward()
    assert a.grad.dtype == b.grad.dtype == torch.float32
    mixed = critic.pairs(a.bfloat16(), b, own[:, None], rows)
    torch.testing.assert_close(mixed, critic.score(a.bfloat16().float()[:, None], b.flatten(0, 1)[rows]))


def test_concat_without_negatives_is_refused_by_its_estimator():
    critic, own = Concat(Y_WIDTH, MAP_WIDTH, 4), torch.tensor([0])
    scores = critic.scores(torch.randn(1, 4), torch.randn(1, 2, 4), own, own[:, None])
    with pytest.raises(ValueError, match=re.escape("got [1, 2] and [1, 0]")):
        infonce(*scores)


@pytest.mark.parametrize("learning", [True, False])
def test_a_step_of_concat_holds_one_hidden_layer_of_its_pairs_and_a_few_tiles(learning):
    """8,192 pairs of 512 numbers, 16 MiB, of which a tile is a quarter; without gradients tiles alone."""
    critic, own = Concat(Y_WIDTH, MAP_WIDTH, 512), torch.arange(64)
    a, b, rows = torch.randn(64, 512, requires_grad=True), torch.randn(64, 8, 512), torch.arange(120).expand(64, 120)
    with Live() as live, torch.set_grad_enabled(learning):
        pos, neg = critic.scores(a, b, own, own[:, None], rows)
        if learning:
            (pos.sum() + neg.sum()).backward()
    assert live.peak < (16 * learning + 6 * 4) * 2**20


def test_many_rows_compute_no_gradient_that_nobody_wants():
    layer, x = shaken(torch.nn.Linear(3, 5)), normal(10, 3)
    with FlopCounterMode(display=False) as all_of_them:
        of_rows(layer, x).sum().backward()
    layer.weight.requires_grad_(False)
    with FlopCounterMode(display=False) as without_weights:
        of_rows(layer, x).sum().backward()
    layer.weight.requires_grad_(True)
    with FlopCounterMode(display=False) as without_rows:
        of_rows(layer, x.detach()).sum().backward()
    one, sums = 2 * 10 * 3 * 5, 2 * 10 * 5  # a product, and the sum of rows for the bias
    assert all_of_them.get_total_flops() == 3 * one + sums
    assert without_weights.get_total_flops() == without_rows.get_total_flops() == 2 * one + sums


def test_rows_of_float64_stay_so_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert of_rows(torch.nn.Linear(2, 3).double(), normal(6, 2)).dtype == torch.float64
