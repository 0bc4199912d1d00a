"""Captions: what the pictures of a run show, and what their numbers are and are not, in words."""

from dim.config import Config, Term
from dim.data import Dataset
from dim.evals import protocol
from dim.figures.drawing import number
from dim.figures.samples import Parts
from dim.summary import by, recipe, some


def about(name: str, config: Config, data: Dataset, state: dict, other: str = "") -> str:
    """What a run is, and where it is another data set what it is shown with here."""
    c, p, trained = config.train, config.objective.prior, state["data"]
    prior = f"prior {p.kind}, weight {p.weight:g}" if p.weight else "no prior"
    shown = f" Shown here: {other}, another data set, {len(data.train):,} training and {len(data.test):,} test images."
    return (
        f"Run {name}: {state['step']:,} steps of {c.batch_size} images, seed {config.seed}. "
        f"{trained['name']}, {trained['images']:,} training images {by(trained['shape'])}; "
        f"{some(config.views.number, 'view')}, augmentation {config.views.kind}. {config.encoder.name}, norm {config.norm}, "
        f"code of {config.encoder.code_size}; {prior}. {recipe(c)}, {config.precision}." + shown * bool(other)
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
    "nwj": "nwj, in nats, has no ceiling; its mean is right with any number of negatives, its spread is not small.",
    "nce": "nce has no unit of information; its ceiling, log(1 + K) + K log((1 + K) / K), depends on K alone.",
    "rkl": "rkl is the reverse KL divergence, of the product from the joint, not mutual information.",
    "chi2": "chi2 is Pearson's divergence of joint and product, not nats of mutual information.",
    "hellinger": "hellinger is the squared Hellinger distance of joint and product, not nats of mutual information.",
    "tv": "tv is the total variation of joint and product, not nats of mutual information.",
    "wasserstein": "wasserstein is the Wasserstein-1 distance of joint and product under the limit on the critic's slope, not "
    "nats of mutual information.",
}


def estimators(config: Config) -> list[str]:
    """The estimators in use."""
    return list(dict.fromkeys(c.estimator for c in (config.objective.local, config.objective.glob) if c.weight))


def of_bounds(config: Config) -> list[str]:
    """What the bounds are and are not."""
    notes = [
        "Each point is the mean over the steps since the point before it (the last may be of few), on training batches with "
        "batch statistics: a monitor of the training, no held-out estimate. Chance: the value of zero scores. K: negatives of "
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
        folds = data.name in protocol.COLUMNS
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


def drawn_from(parts: Parts, n: int) -> str:
    """How many images of which are shown."""
    if parts.kind.endswith("training"):
        too = ": the encoder was trained on them too" * (parts.kind == "training")
        return f"{n:,} drawn {parts.kind} images (there is no test split{too})"
    everything = len(parts.test_order)
    return f"{n:,} of {everything:,} {parts.kind} images, drawn" if n < everything else f"all {n:,} {parts.kind} images"


def of_neighbours(
    parts: Parts, shown: int, each: bool, asked: int, k: int, counts: dict[str, tuple[float, float]]
) -> list[str]:
    """What the neighbours are; each: whether one image of each class is shown; counts: by metric what `agreement` found."""
    notes = [
        f"Queries: {drawn_from(parts, shown)}{', one of each class' * each}. Right of each: those {k} of "
        f"{len(parts.train_order):,} training images whose y is nearest, nearest first, by the sum of absolute differences "
        "(L1) and by the cosine of the angle. Images not augmented; last weights, in eval mode; no label is used."
    ]
    if counts:
        shares = " and ".join(f"{100 * share:.1f}% ({metric})" for metric, (share, _) in counts.items())
        chance = 100 * next(iter(counts.values()))[1]
        notes.append(
            f"Of the {k} nearest to each of {asked:,} such images {shares} have that image's class; of images drawn blindly "
            f"{chance:.1f}%. Under each image its class: blue where it is the query's, orange where not."
        )
    return notes


def of_embedding(parts: Parts, n: int, size: int, perplexity: float, trust: float, named: bool) -> list[str]:
    """What the points are, and what they do not say."""
    labels, images = " Labels colour the points and place none." * named, drawn_from(parts, n)
    return [
        f"{images[0].upper()}{images[1:]}, not augmented; last weights, in eval mode. t-SNE of y (d = {size}): Euclidean "
        f"distances, perplexity {perplexity:.3g}, started from the first two principal components.{labels}",
        "Only who is near whom is meant to be kept. Distances between clusters, their sizes and the axes mean nothing, and "
        f"another start or perplexity draws another picture. Trustworthiness {number(trust)}: 1 where the 10 nearest of each "
        "point are among its nearest in y too, about 0.5 for points laid anyhow.",
    ]


def of_reconstruction(parts: Parts, shown: int, facts: dict) -> list[str]:
    """What the decoder saw, how near it came, and how that is measured."""
    values = {kind: [number(facts[f"{kind}_{name}".lstrip("_")]) for name in ("ms_ssim", "mse")] for kind in KINDS}
    weights = ", ".join(f"{w:.3f}" for w in facts["weights"])
    scales = f"{facts['scales']} scales of weights {weights}" if facts["scales"] > 1 else "1 scale, so plain SSIM"
    return [
        f"A decoder trained with L2 on the frozen y of {len(parts.train_order):,} training images, {facts['steps']:,} steps. "
        f"Shown: {drawn_from(parts, shown)}. All {len(parts.test_order):,} such images, which it was not trained on: MS-SSIM "
        f"{values[''][0]}, mean squared error {values[''][1]} for pixels in [0, 1]. Images that it was trained on: "
        f"{values['train'][0]} and {values['train'][1]}. The mean training image in the place of each reconstruction: "
        f"{values['mean_image'][0]} and {values['mean_image'][1]}.",
        f"MS-SSIM by torchmetrics: {scales}, a Gaussian window of {facts['window']} x {facts['window']}, sigma "
        f"{facts['sigma']:.3g}. It compares at one image size only, and not with the paper's 0.29 to 0.72: its code has one "
        "scale, and constants of pixels in [0, 1] for pixels in [-1, 1].",
        "L2 asks for the mean of all images that could have this y: what is blurred is what y does not say to this decoder.",
    ]


KINDS = ("", "train", "mean_image")
