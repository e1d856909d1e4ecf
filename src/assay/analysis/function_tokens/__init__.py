"""Function tokens: the few most frequent tokens, what they switch on, and whose prediction the loss is spent on.

    function tokens = shortest prefix of the types sorted by count whose counts reach ``mass`` of all tokens
    loss(g → h)     = mean of −ln p(x_{t+1} | x_{≤t}) over t with x_t of class g and x_{t+1} of class h
    degree(v)       = number of features that are active at some position whose input token is v
    coverage(k)     = |features with an edge to one of the k most frequent types| / |features with an edge|

All other types are content tokens. Features are those of a sparse autoencoder of the residual stream behind a layer;
one is active where its value is above 0. A frequent token is seen in more contexts and so switches on more features
whatever it is; ``equal_degrees`` compares the two classes at as many occurrences each.

Zhang, Lin, Li, 2025, arXiv:2510.08203.
"""

from assay.analysis.function_tokens.graph import FeatureGraph, equal_degrees, feature_graph
from assay.analysis.function_tokens.losses import ClassLoss, Observed, class_losses, observe
from assay.analysis.function_tokens.split import TokenCounts, count_tokens, function_tokens

__all__ = [
    "ClassLoss",
    "FeatureGraph",
    "Observed",
    "TokenCounts",
    "class_losses",
    "count_tokens",
    "equal_degrees",
    "feature_graph",
    "function_tokens",
    "observe",
]
