"""Terms against loops over images, locations and negatives; the objective's signs, weights and owners."""

import math
from statistics import fmean

import pytest
import torch
from conftest import tiny

import train
from dim import checkpoint
from dim.critics import Concat, Cosine, Dot
from dim.encoders import Encoder, Encoding
from dim.estimators import ESTIMATORS
from dim.negatives import All, Sampled, Shifted
from dim.objective import Embedded, Objective, Pair, Term
from dim.pool import Pool, Queue, batch_pool
from dim.prior import Prior
from dim.randomness import generator

N, L, Y_WIDTH, MAP_WIDTH = 4, 3, 2, 5
IMAGE = torch.tensor([70, 4, 33, 12])  # data-set numbers
SEED, STEP = 3, 11
CRITICS = {
    "dot": lambda: Dot(Y_WIDTH, MAP_WIDTH, 6, scale=0.5, norm="layer"),
    "concat": lambda: Concat(Y_WIDTH, MAP_WIDTH, 6),
}

each_critic = pytest.mark.parametrize("make", CRITICS.values(), ids=CRITICS)


def codes(n=N, seed=0):
    """y [n, Dy] and m [n, Dm, L], float64."""
    draws = torch.Generator().manual_seed(seed)
    return (torch.randn(n, *shape, generator=draws, dtype=torch.float64) for shape in ((Y_WIDTH,), (MAP_WIDTH, L)))


def made(make, seed=0):
    torch.manual_seed(seed)
    return make().double()


# ---- the terms by loops: one embedding and one score for each pair, lists of floats, the definitions of the estimators


def pair_scores(critic, y, m):
    """s[i][j][place]: vector i against one place of map j, each pair embedded by itself."""

    def score(i, j, place):
        a, b = critic.embed(y[i : i + 1], m[j : j + 1, :, place : place + 1])  # [1, U], [1, 1, U]
        return critic.score(a[0], b[0, 0]).item()

    return [[[score(i, j, place) for place in range(L)] for j in range(len(m))] for i in range(len(y))]


def flat(rows):
    return [t for row in rows for t in row]


LOOPS = {
    "jsd": lambda pos, neg: (
        2 * math.log(2)
        - fmean(math.log(1 + math.exp(-t)) for t in flat(pos))
        - fmean(math.log(1 + math.exp(t)) for t in flat(neg))
    ),
    "dv": lambda pos, neg: fmean(flat(pos)) - math.log(fmean(map(math.exp, flat(neg)))),
    "dv_per_anchor": lambda pos, neg: fmean(
        t - math.log(fmean(map(math.exp, others))) for row, others in zip(pos, neg, strict=True) for t in row
    ),
    "infonce": lambda pos, neg: fmean(
        math.log((len(others) + 1) * math.exp(t) / (math.exp(t) + sum(map(math.exp, others))))
        for row, others in zip(pos, neg, strict=True)
        for t in row
    ),
}

each_estimator = pytest.mark.parametrize("name", LOOPS)  # a term asks nothing of an estimator but to be called


def loop(name, s, places):
    """places[i]: the (image, location) pairs that stand against vector i."""
    pos = [[s[i][i][place] for place in range(L)] for i in range(len(s))]
    neg = [[s[i][j][place] for j, place in places[i]] for i in range(len(s))]
    return LOOPS[name](pos, neg)


def reversed_loop(name, s):
    """Anchors are the locations, negatives the vectors of the other images: K = N - 1."""
    pos = [[s[i][i][place]] for i in range(len(s)) for place in range(L)]
    neg = [[s[j][i][place] for j in range(len(s)) if j != i] for i in range(len(s)) for place in range(L)]
    return LOOPS[name](pos, neg)


def all_others(n=N):
    return [[(j, place) for j in range(n) if j != i for place in range(L)] for i in range(n)]


@each_estimator
@each_critic
def test_term_with_all_negatives_equals_a_loop(make, name):
    critic, (y, m) = made(make), codes()
    value = Term(critic, ESTIMATORS[name], All())(y, m, IMAGE, SEED, STEP)
    assert value.item() == pytest.approx(loop(name, pair_scores(critic, y, m), all_others()), abs=1e-11)


@each_estimator
@each_critic
def test_term_with_chosen_negatives_equals_a_loop(make, name):
    critic, (y, m) = made(make), codes()
    s = pair_scores(critic, y, m)
    next_one = [[((i + 1) % N, place) for place in range(L)] for i in range(N)]
    value = Term(critic, ESTIMATORS[name], Shifted(1))(y, m, IMAGE, SEED, STEP)
    assert value.item() == pytest.approx(loop(name, s, next_one), abs=1e-11)

    rows = Sampled(4)(batch_pool(torch.zeros(N, L, 1), IMAGE), SEED, STEP)
    sampled = [[divmod(row, L) for row in chosen] for chosen in rows.tolist()]
    value = Term(critic, ESTIMATORS[name], Sampled(4))(y, m, IMAGE, SEED, STEP)
    assert value.item() == pytest.approx(loop(name, s, sampled), abs=1e-11)


@pytest.mark.parametrize("negatives", [All(), Sampled(4)], ids=["all", "sampled"])
@each_estimator
@each_critic
def test_symmetric_averages_both_directions(make, name, negatives):
    critic, (y, m) = made(make), codes()
    rows = negatives(batch_pool(torch.zeros(N, L, 1), IMAGE), SEED, STEP)
    places = all_others() if rows is None else [[divmod(row, L) for row in chosen] for chosen in rows.tolist()]
    s = pair_scores(critic, y, m)
    value = Term(critic, ESTIMATORS[name], negatives, symmetric=True)(y, m, IMAGE, SEED, STEP)
    assert value.item() == pytest.approx((loop(name, s, places) + reversed_loop(name, s)) / 2, abs=1e-11)


@pytest.mark.parametrize("symmetric", [False, True])
@each_critic
def test_two_views_meet_each_other(make, symmetric):
    """The vectors of one view with the maps of the other, both ways; no pool mixes the views."""
    critic, (y, m) = made(make), codes(2 * N)
    expected = []
    for vectors, maps in [(y[:N], m[N:]), (y[N:], m[:N])]:
        s = pair_scores(critic, vectors, maps)
        one = loop("infonce", s, all_others())
        expected.append((one + reversed_loop("infonce", s)) / 2 if symmetric else one)
    assert abs(expected[0] - expected[1]) > 1e-3
    value = Term(critic, ESTIMATORS["infonce"], All(), symmetric=symmetric)(y, m, IMAGE, SEED, STEP, views=2)
    assert value.item() == pytest.approx(fmean(expected), abs=1e-11)


def test_both_views_are_embedded_in_one_batch():
    """Seen where batch statistics are: one embedding of all pictures, then the two estimates."""
    critic, (y, m) = made(lambda: Dot(Y_WIDTH, MAP_WIDTH, 6, norm="batch")), codes(2 * N)
    a, b = critic.embed(y, m)
    term = Term(critic, ESTIMATORS["jsd"], All())
    each = [term.scores(Pair(*pair), IMAGE, SEED, STEP) for pair in ((a[:N], b[N:]), (a[N:], b[:N]))]
    expected = (term.estimate(each[0]) + term.estimate(each[1])) / 2
    torch.testing.assert_close(term(y, m, IMAGE, SEED, STEP, views=2), expected)


def test_term_hands_seed_step_and_images_on():
    seen = {}

    def pool(b, image):
        seen.update(image=image.tolist())
        return batch_pool(b, image)

    def negatives(pool, seed, step):
        seen.update(own=pool.own.tolist(), out=pool.out.tolist(), shape=list(pool.b.shape[:2]), seed=seed, step=step)

    y, m = codes()
    Term(made(CRITICS["dot"]), ESTIMATORS["jsd"], negatives, pool)(y, m, IMAGE, SEED, STEP)
    batch = {"own": [0, 1, 2, 3], "out": [[0], [1], [2], [3]], "image": IMAGE.tolist(), "shape": [N, L]}
    assert seen == batch | {"seed": SEED, "step": STEP}


def test_term_takes_a_pool_larger_than_the_batch():
    """Other images' rows on both sides of the batch: more negatives, the same positives, as another rank or a queue gives."""
    critic, (y, m) = made(CRITICS["dot"]), codes(N + 2)
    b_all = critic.embed(y, m)[1]

    def pool(b, image):
        torch.testing.assert_close(b, b_all[1 : N + 1])
        own = torch.arange(N) + 1
        return Pool(b_all, own, own[:, None])

    s = pair_scores(critic, y, m)
    pos = [[s[i][i][place] for place in range(L)] for i in range(1, N + 1)]
    neg = [[s[i][j][place] for j in range(N + 2) if j != i for place in range(L)] for i in range(1, N + 1)]
    value = Term(critic, ESTIMATORS["infonce"], All(), pool)(y[1 : N + 1], m[1 : N + 1], IMAGE, SEED, STEP)
    assert value.item() == pytest.approx(LOOPS["infonce"](pos, neg), abs=1e-11)


@pytest.mark.parametrize("order", [[2, 0, 3, 1], [1, 2, 3, 0]])
def test_symmetric_does_not_depend_on_the_order_of_the_pool(order):
    critic, (y, m) = made(CRITICS["dot"]), codes()

    def pool(b, image):
        own = torch.tensor(order).argsort()
        return Pool(b[order], own, own[:, None])

    plain, mixed = (Term(critic, ESTIMATORS["infonce"], All(), p, symmetric=True) for p in (batch_pool, pool))
    torch.testing.assert_close(mixed(y, m, IMAGE, SEED, STEP), plain(y, m, IMAGE, SEED, STEP))


# ---- the objective


def encoding(n=N, seed=0):
    """Codes of n pictures: y [n, 2], a local map [n, 5, 1, 3], a last map [n, 4, 2, 1]; leaves of the graph, float64."""
    y, m = codes(n, seed)
    conv = torch.randn(n, 4, 2, 1, generator=torch.Generator().manual_seed(seed + 50), dtype=torch.float64)
    y, m, conv = (t.clone().requires_grad_() for t in (y, m.view(n, MAP_WIDTH, 1, L), conv))
    return Encoding(m, conv, torch.zeros(n, 1), y)


def objective(**weights):
    local = Term(made(CRITICS["dot"], 1), ESTIMATORS["jsd"], All())
    glob = Term(made(lambda: Concat(Y_WIDTH, 8, 6), 2), ESTIMATORS["infonce"], All())
    return Objective(local, glob, made(lambda: Prior(Y_WIDTH), 3), **weights)


def test_loss_is_the_weighted_sum_of_its_parts():
    """alpha to the global, beta to the local term, both with a minus; gamma to the prior with a plus."""
    o, c = objective(alpha=0.3, beta=0.7, gamma=0.2), encoding()
    losses = o(c, IMAGE, SEED, STEP)
    local = o.local(c.y, c.map.flatten(2), IMAGE, SEED, STEP)
    glob = o.glob(c.y, c.conv.reshape(N, 8, 1), IMAGE, SEED, STEP)  # the flattened map is one place
    prior = o.prior.encoder_loss(c.y)
    adversary = o.prior.discriminator_loss(c.y, o.prior.sample(N, SEED, STEP))
    torch.testing.assert_close(losses.encoder, -0.3 * glob - 0.7 * local + 0.2 * prior)
    torch.testing.assert_close(losses.discriminator, adversary)
    assert set(losses.parts) == {"local", "global", "prior_encoder", "prior_discriminator"}
    for name, value in {"local": local, "global": glob, "prior_encoder": prior, "prior_discriminator": adversary}.items():
        torch.testing.assert_close(losses.parts[name], value)
    assert len({round(part.item(), 6) for part in losses.parts.values()}) == 4


def test_the_parts_equal_loops():
    o, c = objective(alpha=1.0, beta=1.0), encoding()
    parts = o(c, IMAGE, SEED, STEP).parts
    s = pair_scores(o.local.critic, c.y.detach(), c.map.detach().flatten(2))
    assert parts["local"].item() == pytest.approx(loop("jsd", s, all_others()), abs=1e-11)

    def score(i, j):
        a, b = o.glob.critic.embed(c.y[i : i + 1], c.conv[j].reshape(1, 8, 1))
        return o.glob.critic.score(a[0], b[0, 0]).item()

    pos = [[score(i, i)] for i in range(N)]
    neg = [[score(i, j) for j in range(N) if j != i] for i in range(N)]
    assert parts["global"].item() == pytest.approx(LOOPS["infonce"](pos, neg), abs=1e-11)


def test_a_local_map_that_is_a_vector_is_one_place():
    term = Term(made(lambda: Concat(Y_WIDTH, MAP_WIDTH, 6)), ESTIMATORS["infonce"], All())
    c = encoding()
    vector = c.map[:, :, 0, 0]
    value = Objective(term)(c._replace(map=vector), IMAGE).parts["local"]
    torch.testing.assert_close(value, term(c.y, vector[:, :, None], IMAGE, 0, 0))


@pytest.mark.parametrize("part", ["local", "global"])
def test_a_step_down_the_loss_raises_the_estimate(part):
    o, c = objective(alpha=float(part == "global"), beta=float(part == "local")), encoding()
    losses = o(c, IMAGE, SEED, STEP)
    sources = [c.y, c.map, c.conv]
    gradients = torch.autograd.grad(losses.encoder, sources, allow_unused=True, materialize_grads=True)
    step, square = 1e-4, sum(gradient.square().sum().item() for gradient in gradients)
    y, m, conv = (source - step * gradient for source, gradient in zip(sources, gradients, strict=True))
    after = o(Encoding(m, conv, c.fc, y), IMAGE, SEED, STEP)
    assert square > 1e-6
    assert (after.parts[part] - losses.parts[part]).item() == pytest.approx(step * square, rel=0.05)


def test_terms_that_are_not_built_have_no_part():
    term, c = Term(made(CRITICS["dot"]), ESTIMATORS["jsd"], All()), encoding()
    losses = Objective(term, beta=2.0)(c, IMAGE)
    assert losses.discriminator is None
    assert list(losses.parts) == ["local"]
    torch.testing.assert_close(losses.encoder, -2 * losses.parts["local"])
    only_prior = Objective(prior=made(lambda: Prior(Y_WIDTH)), gamma=0.5)(c, IMAGE)
    assert list(only_prior.parts) == ["prior_encoder", "prior_discriminator"]
    torch.testing.assert_close(only_prior.encoder, 0.5 * only_prior.parts["prior_encoder"])


def test_both_views_reach_every_part():
    o, c = objective(alpha=0.3, beta=0.7, gamma=0.2), encoding(2 * N)
    losses = o(c, IMAGE, SEED, STEP, views=2)
    torch.testing.assert_close(losses.parts["local"], o.local(c.y, c.map.flatten(2), IMAGE, SEED, STEP, 2))
    torch.testing.assert_close(losses.parts["global"], o.glob(c.y, c.conv.reshape(2 * N, 8, 1), IMAGE, SEED, STEP, 2))
    torch.testing.assert_close(losses.parts["prior_encoder"], o.prior.encoder_loss(c.y))
    sample = o.prior.sample(2 * N, SEED, STEP)
    torch.testing.assert_close(losses.discriminator, o.prior.discriminator_loss(c.y, sample))


def test_each_loss_reaches_its_owners_only():
    """From a real encoder on: the discriminator's loss moves neither it nor a critic, the encoder's not the discriminator."""
    torch.manual_seed(0)
    encoder = Encoder("small8x8", channels=1, code_size=Y_WIDTH)
    critics = Dot(Y_WIDTH, 64, 8), Concat(Y_WIDTH, 128 * 4 * 4, 8)
    local, glob = (Term(critic, ESTIMATORS["jsd"], All()) for critic in critics)
    o = Objective(local, glob, Prior(Y_WIDTH, penalty=1.0), alpha=0.5, beta=0.5, gamma=1.0)
    losses = o(encoder(torch.randn(N, 1, 8, 8)), IMAGE, SEED, STEP)
    owners = {
        "encoder": [*encoder.parameters(), *local.parameters(), *glob.parameters()],
        "discriminator": list(o.prior.parameters()),
    }
    for owner, other in [("encoder", "discriminator"), ("discriminator", "encoder")]:
        loss = getattr(losses, owner)
        assert all(g is None for g in torch.autograd.grad(loss, owners[other], retain_graph=True, allow_unused=True))
        assert all(g is not None for g in torch.autograd.grad(loss, owners[owner], retain_graph=True))


def test_the_discriminators_loss_does_not_reach_the_codes():
    c = encoding()
    losses = objective(alpha=1.0, beta=1.0, gamma=1.0)(c, IMAGE)
    assert torch.autograd.grad(losses.discriminator, [c.y, c.map, c.conv], allow_unused=True) == (None, None, None)


@pytest.mark.parametrize(
    ("codes_type", "loss_type"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_losses_are_at_least_float32(codes_type, loss_type):
    o = objective(alpha=1.0, beta=1.0, gamma=1.0).to(loss_type)
    c = Encoding(*(t.detach().to(codes_type) for t in encoding()))
    with torch.autocast("cpu", torch.bfloat16, enabled=codes_type == torch.bfloat16):
        losses = o(c, IMAGE)
    assert all(value.dtype == loss_type for value in (losses.encoder, losses.discriminator, *losses.parts.values()))
    assert losses.encoder.isfinite()


# ---- a critic of limited slope, for wasserstein


def other(i, roll):
    """The roll-th place among the other images, counted on from an image's own."""
    return [j for j in range(N) if j != i][(i + roll - 1) % (N - 1)]


def test_partners_of_a_slope_are_other_images_of_a_larger_pool_too():
    """Seven entries before four anchors: an image never meets itself."""
    term = Term(made(CRITICS["dot"]), ESTIMATORS["wasserstein"], All(), lipschitz=10.0)
    seen = []
    term.critic.score = lambda a, b: seen.append(b.detach()) or (a * b).sum(-1)
    b = torch.arange(7, dtype=torch.float64)[:, None, None].expand(7, 1, 6).contiguous()
    for step in range(30):
        term.slope(Pair(torch.ones(N, 6).double(), b), IMAGE, SEED, step)
    mixed = torch.stack(seen)[:, :, 0, 0]
    own = torch.arange(N).double()
    assert ((mixed - own).abs() > 1e-9).all()
    assert mixed.max() > N  # entries behind the batch are partners too


@pytest.mark.parametrize("views", [1, 2])
def test_the_slope_of_a_dot_critic_by_its_closed_form(views):
    """T = s <a, b> has the gradient s (b, a): its norm at the mixed points, by a loop over anchors and locations."""
    torch.manual_seed(0)
    term = Term(made(CRITICS["dot"]), ESTIMATORS["wasserstein"], All(), lipschitz=10.0)
    a, b = (torch.randn(views * N, *shape, dtype=torch.float64) * 2 for shape in ((6,), (L, 6)))
    expected = []
    for mine, maps in [(a, b)] if views == 1 else [(a[:N], b[N:]), (a[N:], b[:N])]:
        roll = 1 + int(torch.randint(N - 1, (), generator=generator(SEED, "partners", STEP)))
        share = torch.rand(N, L, 1, generator=generator(SEED, "slopes", STEP)).double()
        for i in range(N):
            for place in range(L):
                point = share[i, place] * maps[i, place] + (1 - share[i, place]) * maps[other(i, roll), place]
                norm = 0.5 * (mine[i].square().sum() + point.square().sum()).sqrt().item()
                expected.append(max(0.0, norm - 1) ** 2)
    assert fmean(expected) > 0
    assert term.slope(Pair(a, b), IMAGE, SEED, STEP, views).item() == pytest.approx(fmean(expected), abs=1e-12)


def test_a_gentle_critic_has_no_slope_penalty_and_no_gradient_of_it():
    term = Term(made(CRITICS["dot"]), ESTIMATORS["wasserstein"], All(), lipschitz=10.0)
    a, b = (1e-2 * torch.randn(*shape, dtype=torch.float64) for shape in ((N, 6), (N, L, 6)))
    a.requires_grad_()
    slope = term.slope(Pair(a, b), IMAGE, SEED, STEP)
    assert slope.item() == 0
    (gradient,) = torch.autograd.grad(slope, a)
    assert (gradient == 0).all()


@each_critic
def test_the_slope_is_added_with_its_weight_and_reaches_encoder_and_critic(make):
    y, m = codes()
    y, m = (5 * t.clone().requires_grad_() for t in (y, m))
    term = Term(made(make), ESTIMATORS["wasserstein"], All(), lipschitz=3.0)
    with torch.no_grad():
        for weight in term.critic.parameters():
            weight.mul_(4)  # steep
    objective = Objective(local=term, beta=0.5)
    pair = term.embed(y, m)
    losses = objective.losses(Embedded(y, pair, None), IMAGE, SEED, STEP)
    slope = term.slope(pair, IMAGE, SEED, STEP)
    expected = -0.5 * term(y, m, IMAGE, SEED, STEP) + 0.5 * 3.0 * slope
    torch.testing.assert_close(losses.encoder, expected)
    torch.testing.assert_close(losses.parts["local_slope"], slope)
    grads = torch.autograd.grad(slope, [y, m, *term.critic.parameters()], allow_unused=True)
    sizes = [0 if g is None else g.abs().sum().item() for g in grads]
    assert sum(sizes[2:]) > 0
    if isinstance(term.critic, Dot):  # a ReLU network's slope does not change with its input from one kink to the next
        assert min(sizes[:2]) > 0


def test_training_by_the_penalty_brings_the_slope_down():
    """Wasserstein without it runs away; with it the slope stays near 1 while the value rises."""
    y, m = codes(16)
    found = {}
    for weight in (0.0, 10.0):
        term = Term(made(CRITICS["concat"]), ESTIMATORS["wasserstein"], All(), lipschitz=weight)
        optimizer, image = torch.optim.Adam(term.parameters(), 0.02), torch.arange(16)
        y, m = codes(16)
        for step in range(200):
            losses = Objective(local=term).losses(Embedded(y, term.embed(y, m), None), image, SEED, step)
            optimizer.zero_grad()
            losses.encoder.backward()
            optimizer.step()
        found[weight] = losses.parts["local"].item(), term.slope(term.embed(y, m), image, SEED, 0).sqrt().item()
    assert found[0.0][1] > 5
    assert found[10.0][1] < 0.3
    assert 0.05 < found[10.0][0] < found[0.0][0]


def test_weights_are_clipped_after_a_step_and_only_the_critics():
    term = Term(made(CRITICS["dot"]), ESTIMATORS["wasserstein"], All(), weight_clip=0.01)
    before = [p.clone() for p in term.critic.parameters()]
    Objective(glob=term, alpha=1.0).constrain()
    for one, now in zip(before, term.critic.parameters(), strict=True):
        assert torch.equal(now, one.clamp(-0.01, 0.01))
    local = Term(made(CRITICS["dot"]), ESTIMATORS["wasserstein"], All(), weight_clip=0.01)
    Objective(local=local).constrain()
    assert all(w.abs().max() <= 0.01 for w in local.critic.parameters())
    warm = Term(Cosine(Y_WIDTH, MAP_WIDTH, 6, 0.1), ESTIMATORS["wasserstein"], All(), weight_clip=0.01)
    warm.constrain()
    assert warm.critic.factor().item() == pytest.approx(10)  # a temperature is no weight
    free = Term(made(CRITICS["dot"]), ESTIMATORS["wasserstein"], All())
    Objective(local=free).constrain()
    assert all(torch.equal(p, q) for p, q in zip(before, free.critic.parameters(), strict=True))


# ---- scores in parts


WAYS = {
    "all": (All(), {}, 1),
    "sampled": (Sampled(5), {}, 2),
    "shifted": (Shifted(2), {}, 1),
    "symmetric": (All(), {"symmetric": True}, 2),
    "queue": (All(), {"pool": Queue(12, 4, 8).double()}, 1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("critic", [lambda: Dot(5, 6, 8, norm="none"), lambda: Concat(5, 6, 8)], ids=["dot", "concat"])
def test_scores_in_parts_give_the_value_and_gradient_of_all_at_once(way, estimator, critic):
    negatives, options, views = WAYS[way]
    draws = torch.Generator().manual_seed(0)
    y = torch.randn(views * 6, 5, generator=draws, dtype=torch.float64, requires_grad=True)
    m = torch.randn(views * 6, 6, 4, generator=draws, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    network, found = critic().double(), {}
    for parts in (1, 2, 3, 6):
        pooled = ESTIMATORS[estimator].pooled
        term = Term(network, ESTIMATORS[estimator], negatives, parts=parts, pooled=pooled, **options)
        value, kept = term.value(term.embed(y, m), torch.arange(6), 3, 7, views, keep=True)
        gradients = torch.autograd.grad(value, [y, m, *network.parameters()])
        found[parts] = [value.detach(), *gradients]
        assert len(kept) == views * (1 + term.symmetric)
        assert all(len(pos) == len(neg) for pos, neg in kept)
        assert len(kept[0].pos) == 6 // parts
    for parts in (2, 3, 6):
        for one, other in zip(found[1], found[parts], strict=True):
            torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-13)


def test_a_configured_term_makes_as_many_parts_as_its_budget_asks_for(tmp_path, capsys):
    words = ["--train.batch_size", "60", "--train.steps", "2", "--objective.local.negatives", "all", "--objective.local.k", "0"]
    assert train.main(tiny(tmp_path / "whole", *words)) == 0
    assert " parts" not in capsys.readouterr().out
    assert train.main(tiny(tmp_path / "parts", *words, "--train.score_memory", "0.0002")) == 0
    assert "0.9 MiB of scores in 5 parts" in capsys.readouterr().out
    whole, parts = (checkpoint.load(tmp_path / name)["encoder"] for name in ("whole", "parts"))
    assert all(torch.allclose(whole[name].double(), parts[name].double(), rtol=1e-4, atol=1e-6) for name in whole)
