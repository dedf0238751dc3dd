"""The protocol is SGLang's: what is said parses with the types of its own wheel."""

import json

import msgspec
import pytest

from fst_jax.rollout.server import native, questions
from tests.rollout.served import api_types, control_fields

BODY = {
    "input_ids": [5, 6, 7],
    "sampling_params": {"max_new_tokens": 6, "sampling_seed": 1, "ignore_eos": True},
    "return_logprob": True,
}


@pytest.fixture(scope="module")
def types(tmp_path_factory):
    return api_types(tmp_path_factory.mktemp("sglang"))


def test_answers_are_sglangs(types, client):
    known = {field.name for field in msgspec.structs.fields(types.GenerateMetaInfo)}
    for body in (BODY, BODY | {"sampling_params": [BODY["sampling_params"] | {"n": 2}]}):
        body = body | {"input_ids": [[5, 6, 7]] if body is not BODY else [5, 6, 7]}
        types.GenerateRequest.from_json_value(body)
        answers = client.post("/generate", json=body).json()
        for answer in answers if isinstance(answers, list) else [answers]:
            parsed = types.GenerateResponse.from_json_value(answer)
            assert answer.keys() <= {f.name for f in msgspec.structs.fields(type(parsed))}
            assert answer["meta_info"].keys() <= known
            assert parsed.output_ids == answer["output_ids"] and len(parsed.output_ids) == 6
            entries = parsed.meta_info.output_token_logprobs
            assert [entry.token_id for entry in entries] == parsed.output_ids
            (span,) = parsed.meta_info.weight_versions
            assert (span.version, span.start, span.end) == ("default", 0, 6)
    with client.stream("POST", "/generate", json=BODY | {"stream": True}) as response:
        for line in response.iter_lines():
            if line and "DONE" not in line:
                types.GenerateResponse.from_json_value(json.loads(line[6:]))


def test_descriptions_are_sglangs(types, client):
    for path, kind in (
        ("/model_info", types.GetModelInfoResponse),
        ("/get_model_info", types.GetModelInfoResponse),
        ("/server_info", types.GetServerInfoResponse),
    ):
        said = client.get(path).json()
        kind.from_json_value(said)
        assert said.keys() <= {field.name for field in msgspec.structs.fields(kind)}


def test_every_field_that_is_read_has_sglangs_name_and_default(types):
    def fields(kind: type) -> dict[str, object]:
        return {f.name: f.default for f in msgspec.structs.fields(kind)}

    ours, theirs = fields(questions.SamplingParams), fields(types.SamplingParams)
    assert ours.keys() <= theirs.keys()
    assert theirs.keys() - ours.keys() == set()  # nothing that it takes is an unknown key here
    for name in ("max_new_tokens", "temperature", "top_p", "min_p", "n", "ignore_eos"):
        assert ours[name] == theirs[name]
    assert fields(questions.Generate).keys() <= fields(types.GenerateRequest).keys()
    for kind, name in (
        (native.UpdateWeights, "UpdateWeightFromDiskReqInput"),
        (native.Pause, "PauseGenerationReqInput"),
        (native.Abort, "AbortReq"),
        (native.Memory, "ReleaseMemoryOccupationReqInput"),
        (native.Memory, "ResumeMemoryOccupationReqInput"),
    ):
        assert fields(kind).keys() - {"rid"} <= control_fields(name)
