"""Models: trained behind one interface, judged with intervals, compiled, and kept as versions.

A model is one scikit-learn pipeline, features and estimator together, so that nobody can serve an
estimator with features that it was not trained on. A *version* is a folder that carries the model and
everything that anyone downstream will ask of it.
"""
