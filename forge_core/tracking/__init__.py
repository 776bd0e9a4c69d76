"""MLflow: what was tried, with which rows, and the registry of versions. The only room that imports MLflow."""
