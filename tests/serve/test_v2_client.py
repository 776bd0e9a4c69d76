"""An off-the-shelf client of the Open Inference Protocol, and what others may send, over real HTTP."""

from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from serve_app.live_version import LiveVersion
from tests.serve.live_models import mixed_rows, number_rows

DATATYPES = {"float64": "FP64", "int64": "INT64", "str": "BYTES", "bool": "BOOL"}


@pytest.fixture(scope="module")
def client(api_url: str) -> Any:
    made = triton.InferenceServerClient(api_url.removeprefix("http://"))
    yield made
    made.close()


def tensor(name: str, values: Any, datatype: str, *, binary: bool) -> Any:
    cells = np.array(values, dtype=object) if datatype == "BYTES" else np.asarray(values)
    made = triton.InferInput(name, list(cells.shape), datatype)
    made.set_data_from_numpy(cells, binary_data=binary)
    return made


def numbers_by_hand(url: str, model: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answer = httpx.post(f"{url}/models/{model}/predict/batch", json={"records": records})
    return answer.raise_for_status().json()["predictions"]


def test_the_client_finds_the_server_its_models_and_their_tensors(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("mixed")
    assert client.get_server_metadata()["name"] == "mlops-forge"
    assert client.get_model_metadata("numbers", "3")["inputs"][0] == {
        "name": "width",
        "datatype": "FP64",
        "shape": [-1],
    }
    assert not client.is_model_ready("none") and not client.is_model_ready("mixed", "9")
    with pytest.raises(
        InferenceServerException, match=r"version '9' of 'mixed' is not held here; held: 3 \(champion\)"
    ):
        client.get_model_metadata("mixed", "9")


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("answered", [True, False])
def test_tensors_of_every_kind_get_the_answers_of_the_batch_route(
    client: Any, api_url: str, versions: Mapping[str, LiveVersion], sent: bool, answered: bool
) -> None:
    columns = versions["mixed"].columns
    rows = mixed_rows(40, random_state=1)[columns].dropna().reset_index(drop=True)
    rows["flag"] = rows["flag"].astype(bool)
    rows["when"] = rows["when"].map(lambda moment: moment.isoformat()).astype("str")
    records = rows.to_dict(orient="records")
    inputs = [tensor(c, rows[c].tolist(), DATATYPES[str(rows[c].dtype)], binary=sent) for c in columns]
    names = ["probability", "prediction"]
    wanted = [triton.InferRequestedOutput(name, binary_data=answered) for name in names]
    result = client.infer("mixed", inputs, outputs=wanted, request_id="r1")
    expected = numbers_by_hand(api_url, "mixed", records)
    decoded = [v.decode() if isinstance(v, bytes) else v for v in result.as_numpy("prediction")]
    assert decoded == [e["prediction"] for e in expected] and len(set(decoded)) == 3
    np.testing.assert_allclose(result.as_numpy("probability"), [e["prediction_probability"] for e in expected])
    said = result.get_response()
    assert [o["name"] for o in said["outputs"]] == names and said["id"] == "r1" and said["model_version"] == "3"


def test_one_tensor_of_numbers_with_nan_as_missing_by_the_clients_defaults(client: Any, api_url: str) -> None:
    rows = number_rows(200)[["width", "count"]]
    assert rows["width"].isna().any()
    result = client.infer("numbers", [tensor("inputs", rows.to_numpy("float32"), "FP32", binary=True)])
    records = rows.astype("float32").astype(object).where(rows.notna(), None).to_dict(orient="records")
    expected = numbers_by_hand(api_url, "numbers", records)
    np.testing.assert_allclose(result.as_numpy("prediction"), [e["prediction"] for e in expected], rtol=1e-6)
    assert result.as_numpy("probability") is None and len(set(result.as_numpy("request_id"))) == 200


def test_a_column_of_shape_n_by_one_and_a_version_by_its_number(client: Any) -> None:
    inputs = [
        tensor("feature1", [[0.5], [1.5]], "FP64", binary=False),
        tensor("feature2", [["category1"], ["never seen"]], "BYTES", binary=True),
    ]
    result = client.infer("sample", inputs, model_version="3")
    assert result.as_numpy("prediction").dtype == np.int64 and result.as_numpy("prediction").shape == (2,)


def test_the_client_hears_which_field_is_wrong(client: Any) -> None:
    with pytest.raises(InferenceServerException, match=r"inputs.weight: is no feature of this model") as caught:
        client.infer("sample", [tensor("weight", [1.0], "FP64", binary=True)])
    assert caught.value.status() == "422"
    with pytest.raises(InferenceServerException, match="feature2: is required"):
        client.infer("sample", [tensor("feature1", [1.0], "FP64", binary=True)])


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{}", {"Content-Type": "text/csv"}, 415),
        (b"{}", {"Content-Type": "application/octet-stream"}, 415),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, 422),
        (b"{}", {"Inference-Header-Content-Length": "3"}, 422),
        (b"{}", {"Inference-Header-Content-Length": "1"}, 400),
        (b"{}", {}, 422),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1e999]}]}', {}, 400),
    ],
)
def test_other_bodies_get_problem_documents_with_an_error(
    api_url: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = httpx.post(f"{api_url}/v2/models/sample/infer", content=body, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["error"] == answer.json()["detail"]
