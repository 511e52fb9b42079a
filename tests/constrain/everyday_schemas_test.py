"""everyday_schemas_test.py SCHEMA_TEXTS [COUNT]: how many of the schemas that people's libraries emit
are accepted, and whether what a random model writes under them is valid by jsonschema.

Decimals are read as such: by its floats, jsonschema takes 0.07 for no multiple of 0.01.
"""

import decimal
import json
import os
import subprocess
import sys
import tempfile

import jsonschema

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL_DIR = os.path.join(HERE, "..", "models", "tiny-fp8")
FILES = ("real_world_schemas.jsonl", "everyday_schemas.jsonl")
ACCEPTED_MIN = 0.97


def exact(value):
    return json.loads(json.dumps(value), parse_float=decimal.Decimal)


def validator_of(schema):
    """Of the draft that the schema names or, by its old forms, is of."""
    draft = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    text = json.dumps(schema)
    if "$schema" not in schema and ('"items": [' in text or '"dependencies"' in text):
        draft = jsonschema.Draft7Validator
    types = draft.TYPE_CHECKER.redefine(
        "number", lambda _, v: isinstance(v, (int, float, decimal.Decimal)) and not isinstance(v, bool))
    types = types.redefine(
        "integer", lambda _, v: (isinstance(v, int) and not isinstance(v, bool))
        or (isinstance(v, (float, decimal.Decimal)) and v == int(v)))
    return jsonschema.validators.extend(draft, type_checker=types)(exact(schema))


def main(program, count):
    rows = []
    for name in FILES:
        with open(os.path.join(HERE, name), encoding="utf-8") as file:
            rows += [json.loads(line) for line in file]
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps({"name": r["name"], "schema": r["schema"]}) + "\n" for r in rows)
        file.flush()
        out = subprocess.run([program, MODEL_DIR, file.name, str(count)], check=True, text=True,
                             stdout=subprocess.PIPE).stdout
    accepted = texts = 0
    wrong = []
    for row, line in zip(rows, out.rstrip("\n").split("\n"), strict=True):  # U+2028 ends no line here
        answer = json.loads(line)
        if "refused" in answer:
            print(f"refused: {row['name']}: {answer['refused']}")
            if "$" not in answer["refused"]:
                wrong.append(f"{row['name']}: the refusal names no place")
            continue
        accepted += 1
        validator = validator_of(row["schema"])
        for text in answer["texts"]:
            texts += 1
            try:
                errors = list(validator.iter_errors(json.loads(text, parse_float=decimal.Decimal)))
            except json.JSONDecodeError as error:
                errors = [error]
            if errors:
                wrong.append(f"{row['name']}: {text[:300]}: {str(errors[0])[:300]}")
    print(f"{accepted} of {len(rows)} schemas accepted, {texts - len(wrong)} of {texts} texts valid")
    for line in wrong[:20]:
        print("wrong:", line)
    return 1 if wrong or accepted < ACCEPTED_MIN * len(rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20))
