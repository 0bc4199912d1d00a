"""dim, the Deep InfoMax trainer: views x critic x negatives x estimator (+ prior matching), a file for each factor."""

__version__ = "0.1.0"
