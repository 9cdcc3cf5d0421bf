"""The keys of `model` that describe an encoder's block: with a row's own values it is that architecture, with others an ablation.
`narrow_layers` is the one that says how it is trained, and not what it is.

An ablation is a model of its own where runs are compared. The keys stand by themselves because the cost side, which reads them in
records, needs neither configs nor torch.
"""

BLOCK = (
    "positions",
    "norm",
    "embedding_norm",
    "window",
    "global_every",
    "biases",
    "rope_theta",
    "local_rope_theta",
    "narrow_layers",
)
