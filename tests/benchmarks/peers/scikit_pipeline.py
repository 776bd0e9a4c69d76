"""The model as users of the other products write it: scikit-learn's own ColumnTransformer before the estimator."""

from typing import Any

import pandas as pd
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler


def time_parts(times: pd.DataFrame) -> pd.DataFrame:
    """Return hour, weekday and month."""
    moments = pd.to_datetime(times["seen_at"], utc=True).dt
    return pd.DataFrame({"hour": moments.hour, "weekday": moments.weekday, "month": moments.month})


def scikit_pipeline(estimator: Any, X: pd.DataFrame, y: pd.Series) -> Pipeline:
    """Return a pipeline of the 12 columns fitted with an estimator like this one."""
    numbers = ["age", "income", "balance", "distance", "rating", "visits"]
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
            ("levels", OneHotEncoder(handle_unknown="ignore"), ["channel", "region", "product"]),
            ("shop", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["shop"]),
            ("flag", "passthrough", ["member"]),
            ("time", FunctionTransformer(time_parts), ["seen_at"]),
        ]
    )
    return Pipeline([("columns", columns), ("estimator", clone(estimator))]).fit(X, y)
