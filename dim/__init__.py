"""dim, the Deep InfoMax trainer: views x critic x negatives x estimator (+ prior matching), a file for each factor.

As a library, with a loop of your own:

    >>> import torch
    >>> from dim import critics, datasets, encoders, estimators, negatives, objective
    >>> from dim.config import Data
    >>> from dim.evals import features, linear
    >>> data = datasets.digits(Data())
    >>> encoder = encoders.Encoder("small8x8", channels=1)
    >>> critic = critics.Dot(anchor_width=64, map_width=64, units=64, scale=64**-0.5)
    >>> dim_loss = objective.Objective(local=objective.Term(critic, estimators.infonce, negatives.All()))
    >>> optimizer = torch.optim.Adam([*encoder.parameters(), *dim_loss.parameters()], 1e-3)
    >>> for step in range(30):
    ...     index = torch.randint(0, len(data.train), (128,))
    ...     losses = dim_loss(encoder(data.floats(data.train.images[index])), index, seed=0, step=step)
    ...     optimizer.zero_grad()
    ...     losses.encoder.backward()
    ...     optimizer.step()
    >>> train, test = (features.features(encoder, data, split)["fc"] for split in (data.train, data.test))
    >>> probe = linear.fit(train, data.train.labels, penalty=1.0)
    >>> linear.accuracy(probe, test, data.test.labels) > 0.9
    True
"""

__version__ = "0.1.0"


def load_encoder(path):
    """The encoder exported to `path` by `evaluate.py RUN --export`; see `dim.export.load_encoder`."""
    from dim.export import load_encoder

    return load_encoder(path)
