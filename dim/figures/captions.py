"""Captions: what the pictures of a run show, and what their numbers are and are not, in words."""

from dim.config import Config, Term
from dim.data import Dataset
from dim.evals import linear
from dim.figures.drawing import number
from dim.summary import by, recipe, some


def about(name: str, config: Config, data: Dataset, state: dict) -> str:
    """What a run is."""
    c, p = config.train, config.objective.prior
    prior = f"prior {p.kind}, weight {p.weight:g}" if p.weight else "no prior"
    return (
        f"Run {name}: {state['step']:,} steps of {c.batch_size} images, seed {config.seed}. "
        f"{data.name}, {len(data.pretraining):,} training images {by(data.shape)}; "
        f"{some(config.views.number, 'view')}, augmentation {config.views.kind}. {config.encoder.name}, norm {config.norm}, "
        f"code of {config.encoder.code_size}; {prior}. {recipe(c)}, {config.precision}."
    )


def term_of(name: str, config: Config) -> Term:
    """The configuration of a term by its name in the log, local or global."""
    return config.objective.local if name == "local" else config.objective.glob


def heading(name: str, c: Term, k: int) -> str:
    """What a term is: estimator, critic, number and kind of its negatives."""
    way = ", symmetric" * c.symmetric
    critic = f"{c.critic} critic of {c.units} units"
    return f"{name.capitalize()} term, weight {c.weight:g}: {c.estimator}{way}, {critic}, K = {k:,} ({c.negatives})"


NATURE = {
    "jsd": "jsd is twice the Jensen-Shannon divergence of joint and product, not nats of mutual information; its expectation "
    "does not depend on K.",
    "infonce": "infonce, in nats, cannot pass its ceiling log(K + 1) however large the mutual information is.",
    "dv": "dv, in nats, has no ceiling; its one logarithm runs over the negatives of all anchors together, and with finitely "
    "many its value is biased upwards.",
    "dv_per_anchor": "dv_per_anchor, in nats, has no ceiling; with few negatives its value is biased upwards.",
}


def estimators(config: Config) -> list[str]:
    """The estimators in use."""
    return list(dict.fromkeys(c.estimator for c in (config.objective.local, config.objective.glob) if c.weight))


def of_bounds(config: Config) -> list[str]:
    """What the bounds are and are not."""
    notes = [
        "Each point is the mean over the steps since the point before it (the last may be of few), on training batches with "
        "batch statistics: a monitor of the training, no held-out estimate. Chance: the value of equal scores. K: negatives of "
        "each anchor.",
        " ".join(NATURE.get(name, "") for name in estimators(config)),
    ]
    if any(c.weight and c.symmetric for c in (config.objective.local, config.objective.glob)):
        notes.append("symmetric: the mean of both directions, and so is the ceiling.")
    return notes


def of_training(config: Config, data: Dataset, probed: bool) -> list[str]:
    """What the numbers of the course are and are not."""
    c, p = config.train, config.objective.prior
    notes = [
        "Effective rank: exp of the entropy of the shares of variance along the principal axes of the codes of one batch "
        f"(N = {c.batch_size} images, d = {config.encoder.code_size}); 1 where all lie on a line. Losses and gradient norms "
        "are means over the steps since the point before (the last may be of few)."
    ]
    if probed:
        folds = data.name in linear.PROTOCOLS
        images = "three folds of the training images" if folds else "validation images, a tenth of the training split"
        notes.append(
            f"Accuracy: a quick probe of the frozen layers fc and y, scored on {images}, never on test images: a monitor, "
            f"not a result. Chance: 1 / {data.classes} classes."
        )
    if p.weight:
        penalty = f" (it includes a gradient penalty of weight {p.penalty:g})" if p.penalty else ""
        notes.append(
            f"Prior: the discriminator's loss is 2 log 2 = 1.386 where it cannot tell codes from samples of the prior, and "
            f"less where it can{penalty}. The encoder's is log 2 = 0.693 at the former, and more at the latter."
        )
    return notes


def source(n: int, kind: str, config: Config) -> str:
    """Which images are shown, and how."""
    seen = " (the encoder was trained on them too, without labels)" if kind == "validation" else ""
    views = f" (training: {some(config.views.number, 'view')}, {config.views.kind})" if config.views.kind != "none" else ""
    return f"{n:,} {kind} images{seen}, not augmented{views}; last weights, in eval mode."


FREE = {
    "infonce": "infonce leaves the scores of each anchor free up to a constant of its own: of all anchors together, as here, "
    "positives and negatives overlap more than of one anchor.",
    "dv": "dv leaves all scores free up to one constant: only differences count.",
}
FREE["dv_per_anchor"] = FREE["infonce"].replace("infonce", "dv_per_anchor")


def of_scores(n: int, kind: str, config: Config) -> list[str]:
    """What the scores are."""
    notes = [
        f"One batch: {source(n, kind, config)} Positives: a code with each location of its own image's map; negatives: with K "
        "locations of other images. Each histogram has area 1."
    ]
    return notes + [FREE[name] for name in estimators(config) if name in FREE]


def of_codes(n: int, kind: str, config: Config, rank: float) -> list[str]:
    """What the codes are, and their effective rank."""
    most = min(n - 1, config.encoder.code_size)
    remark = (
        "Dimensions that are each like the prior need not be so jointly: the discriminator's loss, in training.png, says more."
        if config.objective.prior.weight
        else "No prior was trained, so nothing sets the scale of y: the normal density stands for scale only."
    )
    return [f"{source(n, kind, config)} Effective rank of these codes: {number(rank)} of at most {most}.", remark]
